//! The flags of what theta does with gradients, and their check.

use clap::Args;
use ps_common::exit::ExitError;
use serde::Serialize;

use crate::numeric::{Optimizer, Wish};

/// How theta moves by an aggregate gradient.
#[derive(Args, Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Update rule")]
pub struct UpdateArgs {
    /// The update rule on the server, and its options
    ///
    ///   sgd
    ///   momentum,mu=0.9
    ///   nesterov,mu=0.9
    ///   adagrad,eps=1e-10
    ///   rmsprop,rho=0.99,eps=1e-8
    ///   adam,beta1=0.9,beta2=0.999,eps=1e-8
    ///   adamw,beta1=0.9,beta2=0.999,eps=1e-8
    ///   ftrl,alpha=0.01,beta=1,l1=0,l2=0        alpha stands for --lr
    ///
    /// Formulas: docs/OPTIMIZERS.md. Epsilon is added outside the root, momentum has no dampening.
    #[arg(long, env = "PS_OPTIMIZER", value_name = "NAME[,OPTION=VALUE]", default_value = "sgd")]
    #[arg(verbatim_doc_comment)]
    pub optimizer: String,
    /// Learning rate [default: 0.01]
    #[arg(long, env = "PS_LR", value_name = "F")]
    pub lr: Option<f64>,
    /// The course of the learning rate over the updates t = 0, 1, 2, ...
    ///
    ///   constant                                lr
    ///   step,every=N,gamma=F                    lr * F^floor(t/N)
    ///   exponential,gamma=F                     lr * F^t
    ///   exponential,rate=F,decay-steps=N        lr * F^(t/N)
    ///   cosine,steps=T,min=F                    from lr down to F at t = T, and F after
    ///   cosine,steps=T,min=F,mult=M             the same again and again, M times as long each time
    ///   warmup-cosine,warmup=W,steps=T,min=F    lr * (t+1)/W while t < W, then cosine from lr at W
    ///                                           down to F at t = T
    ///   inv-sqrt,warmup=W                       lr * min(sqrt(W/(t+1)), (t+1)/W); W is 1 if left out
    #[arg(long, env = "PS_LR_SCHEDULE", value_name = "NAME[,OPTION=VALUE]")]
    #[arg(default_value = "constant", verbatim_doc_comment)]
    pub lr_schedule: String,
    /// Adds F * theta to the gradient, or with adamw takes lr * F * theta from theta; a bias is
    /// left alone [default: 0.01 with adamw, 0 otherwise]
    #[arg(long, env = "PS_WEIGHT_DECAY", value_name = "F")]
    pub weight_decay: Option<f64>,
    /// Scales an aggregate gradient whose L2 norm is larger down to this norm, before weight decay
    #[arg(long, env = "PS_CLIP_NORM", value_name = "F")]
    pub clip_norm: Option<f64>,
}

impl UpdateArgs {
    /// Checks combinations and gives defaults their values.
    ///
    /// # Errors
    /// A configuration error that names the flag.
    pub fn check(&self) -> Result<Optimizer, ExitError> {
        Optimizer::new(&Wish {
            optimizer: &self.optimizer,
            lr: self.lr,
            schedule: &self.lr_schedule,
            weight_decay: self.weight_decay,
            clip_norm: self.clip_norm,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::{ADAMW_DECAY, LR};
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Demo {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn check(arguments: &[&str]) -> Result<Optimizer, ExitError> {
        let all = std::iter::once("demo").chain(arguments.iter().copied());
        Demo::try_parse_from(all).expect("accepted").args.check()
    }

    #[test]
    fn the_help_tells_the_defaults_that_hold() {
        let help = Demo::command().render_long_help().to_string();
        for (flag, default) in [("--lr <F>", LR), ("--weight-decay <F>", ADAMW_DECAY)] {
            let text = help.split(flag).nth(1).expect(flag);
            assert!(text.contains(&format!("[default: {default}")), "{text}");
        }
        for name in "sgd momentum nesterov adagrad rmsprop adam adamw ftrl".split(' ') {
            // As the help has it, with the defaults it claims.
            let told = |word: &&str| word.split(',').next() == Some(name);
            let text = help.split_whitespace().find(told).expect(name);
            let as_told = check(&["--optimizer", text]).expect("as the help says");
            assert_eq!(as_told, check(&["--optimizer", name]).expect("known"), "{text}");
        }
    }

    #[test]
    fn an_option_that_an_optimizer_has_not_is_named() {
        for (arguments, named) in [
            (&["--optimizer=sgd,mu=0.9"][..], "mu=0.9"),
            (&["--optimizer=ftrl,alpha=0.1", "--lr=0.1"], "--lr"),
            (&["--optimizer=ftrl", "--weight-decay=0.1"], "--weight-decay"),
            (&["--lr-schedule=cosine,steps=5,min=0.02"], "min=0.02"),
            (&["--clip-norm=-0"], "--clip-norm"),
        ] {
            let error = check(arguments).expect_err(named);
            assert!(error.message.contains(named), "{error}");
        }
    }
}
