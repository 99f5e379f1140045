//! Every rule against a naive twin: its formula, element by element, in f64; and kernels with wide registers
//! against the same arithmetic without.

use ps_common::Element;
use ps_common::check::first_non_finite;

use super::sgd::sgd;
use super::*;

/// Step `t` (from 1) of one element, literally as in the rule's source; `state` are its slots.
fn naive(rule: Rule, (lr, decay): (f64, f64), t: i32, g: f64, (x, state): &mut (f64, [f64; 2])) {
    let [a, b] = state;
    match rule {
        Rule::Sgd => *x -= lr * g,
        Rule::Momentum { mu } => {
            *a = mu * *a + g;
            *x -= lr * *a;
        }
        Rule::Nesterov { mu } => {
            *a = mu * *a + g;
            *x -= lr * (g + mu * *a);
        }
        Rule::Adagrad { eps } => {
            *a += g.powi(2);
            *x -= lr * g / (a.sqrt() + eps);
        }
        Rule::Rmsprop { rho, eps } => {
            *a = rho * *a + (1.0 - rho) * g.powi(2);
            *x -= lr * g / (a.sqrt() + eps);
        }
        Rule::Adam(betas) | Rule::Adamw(betas) => {
            let Betas { beta1, beta2, eps } = betas;
            if matches!(rule, Rule::Adamw(_)) {
                *x -= lr * decay * *x;
            }
            *a = beta1 * *a + (1.0 - beta1) * g;
            *b = beta2 * *b + (1.0 - beta2) * g.powi(2);
            let (m, v) = (*a / (1.0 - beta1.powi(t)), *b / (1.0 - beta2.powi(t)));
            *x -= lr * m / (v.sqrt() + eps);
        }
        Rule::Ftrl { beta, l1, l2 } => {
            let [z, n] = state;
            let sigma = ((*n + g * g).sqrt() - n.sqrt()) / lr;
            *z += g - sigma * *x;
            *n += g * g;
            *x = if z.abs() <= l1 {
                0.0
            } else {
                -(*z - z.signum() * l1) / ((beta + n.sqrt()) / lr + l2)
            };
        }
    }
}

const RULES: [&str; 9] = [
    "sgd",
    "momentum,mu=0.8",
    "nesterov",
    "adagrad,eps=1e-3",
    "rmsprop,rho=0.9",
    "adam",
    "adamw,beta1=0.8,beta2=0.95,eps=1e-4",
    "ftrl,l1=0.05,l2=0.5",
    "ftrl,beta=0.5",
];

/// Gradients of very different sizes, some of them 0.
fn gradient(t: i32, i: usize) -> f64 {
    let wave = (f64::from(t) * 0.7 + i as f64 * 1.3).sin();
    if (i + t as usize).is_multiple_of(5) { 0.0 } else { wave * 10f64.powi(i as i32 % 5 - 2) }
}

fn agree<T: Element>(rule: &str, penalized: bool, tolerance: f64) {
    const DIM: usize = 53;
    const LR: f64 = 0.05;
    const DECAY: f64 = 0.3;
    let (rule, _) = Rule::parse(rule).expect("known");
    let start = |i: usize| (i as f64 * 0.9).cos();
    let mut theta: Vec<T> = (0..DIM).map(|i| T::from_f64(start(i))).collect();
    let mut state = [vec![T::ZERO; DIM], vec![T::ZERO; DIM]];
    let mut twin: Vec<(f64, [f64; 2])> = theta.iter().map(|x| (x.to_f64(), [0.0; 2])).collect();
    for t in 1..=30 {
        let g: Vec<T> = (0..DIM).map(|i| T::from_f64(gradient(t, i))).collect();
        let n_before = t as u64 - 1;
        let step = Step { lr: LR, factor: 1.0, decay: DECAY, n_before, penalized };
        rule.step(&mut theta, &g, state.each_mut().map(Vec::as_mut_slice), &step);
        for (i, twin) in twin.iter_mut().enumerate() {
            let rule = match rule {
                Rule::Ftrl { beta, .. } if !penalized => Rule::Ftrl { beta, l1: 0.0, l2: 0.0 },
                other => other,
            };
            let decay = if penalized { DECAY } else { 0.0 };
            naive(rule, (LR, decay), t, g[i].to_f64(), twin);
            let (x, memory) = *twin;
            let got = theta[i].to_f64();
            let near = (got - x).abs() <= tolerance * x.abs().max(1.0);
            assert!(near, "{rule:?}, step {t}, element {i}: {got}, not {x}");
            for (slot, want) in state.iter().zip(&memory).take(rule.slots().len()) {
                let got = slot[i].to_f64();
                let near = (got - want).abs() <= tolerance * want.abs().max(1.0);
                assert!(near, "{rule:?}, step {t}, element {i}: state {got}, not {want}");
            }
        }
    }
}

#[test]
fn every_rule_equals_its_twin_in_f64() {
    for rule in RULES {
        agree::<f64>(rule, true, 1e-12);
        agree::<f64>(rule, false, 1e-12);
    }
}

#[test]
fn every_rule_equals_its_twin_in_f32() {
    for rule in RULES {
        agree::<f32>(rule, true, 2e-5);
        agree::<f32>(rule, false, 2e-5);
    }
}

#[test]
fn a_factor_is_a_rate_and_for_ftrl_a_weight() {
    for text in RULES {
        let (rule, _) = Rule::parse(text).expect("known");
        let run = |lr: f64, factor: f64, g: f64| {
            let (mut theta, mut state) = ([0.7f64], [[0.0], [0.0]]);
            let step = Step { lr, factor, decay: 0.0, n_before: 0, penalized: true };
            rule.step(&mut theta, &[g], state.each_mut().map(|s| &mut s[..]), &step);
            theta[0]
        };
        let want = match rule {
            Rule::Ftrl { .. } => run(0.5, 1.0, 0.75),
            _ => run(0.125, 1.0, 3.0),
        };
        assert_eq!(run(0.5, 0.25, 3.0), want, "{text}");
    }
}

/// Numbers of all sizes, some of them so small that they are subnormal.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from_bits(state & 0xbfff_ffff)
    };
    (0..n).map(|_| next()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Element by element, through a barrier that keeps anything from being vectorised.
fn narrow(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> Vec<u32> {
    a.iter().zip(b).map(|(&a, &b)| f(std::hint::black_box(a), b).to_bits()).collect()
}

#[test]
fn wide_kernels_give_the_bits_of_narrow_ones() {
    for n in [0, 1, 7, 8, 9, 31, 32, 33, 255, 256, 257, 2048] {
        let (a, b) = (values(n, 1), values(n, 2));
        let mut out = vec![0.0; n];
        sgd_from(&mut out, &a, &b, 0.1);
        assert_eq!(bits(&out), narrow(&a, &b, |a, b| a - 0.1 * b), "sgd of {n}");
        let mut in_place = a.clone();
        sgd(&mut in_place, &b, 0.1);
        assert_eq!(bits(&in_place), bits(&out), "sgd of {n} in place");
        out.copy_from_slice(&a);
        add_scaled(&mut out, &b, 0.3);
        assert_eq!(bits(&out), narrow(&a, &b, |a, b| a + 0.3 * b), "sum of {n}");
        weighted_sum(&mut out, &[(&a, 0.7), (&b, 0.3)]);
        assert_eq!(bits(&out), narrow(&a, &b, |a, b| 0.7 * a + 0.3 * b), "mean of {n}");
        let wanted = out.iter().position(|x| !x.is_finite());
        assert_eq!(first_non_finite(&out), wanted, "check of {n}");
    }
}

#[test]
fn descent_says_whether_all_of_it_is_finite() {
    for n in [1, 15, 16, 17, 40] {
        let (theta, mut gradient, mut new) = (vec![0f32; n], vec![1f32; n], vec![0f32; n]);
        assert!(sgd_from(&mut new, &theta, &gradient, 0.1));
        assert!(sgd(&mut theta.clone(), &gradient, 0.1));
        for at in 0..n {
            gradient[at] = f32::INFINITY;
            assert!(!sgd_from(&mut new, &theta, &gradient, 0.1), "{at} of {n}");
            assert!(!sgd(&mut theta.clone(), &gradient, 0.1), "{at} of {n} in place");
            gradient[at] = 1.0;
        }
    }
}

#[test]
fn a_rule_gives_an_element_the_same_bits_alone_and_among_others_beside_and_in_place() {
    for text in RULES {
        let (rule, _) = Rule::parse(text).expect("known");
        let step = Step { lr: 0.1, factor: 0.5, decay: 0.1, n_before: 3, penalized: true };
        for n in [1, 7, 8, 9, 33, 257, 600] {
            let [old, gradient, first, second] = [1, 2, 3, 4].map(|seed| values(n, seed));
            // What is a mean or a sum of squares is not negative.
            let magnitudes = |x: Vec<f32>| x.into_iter().map(f32::abs).collect::<Vec<_>>();
            let before = [magnitudes(first), magnitudes(second)];
            let mut new = [vec![f32::NAN; n], vec![f32::NAN; n], vec![f32::NAN; n]];
            let [theta, a, b] = &mut new;
            let slots = [(&mut a[..], &before[0][..]), (&mut b[..], &before[1][..])];
            rule.step_from((theta, &old), &gradient, slots, &step);
            let mut alone = [old.clone(), before[0].clone(), before[1].clone()];
            let [theta, a, b] = &mut alone;
            for (i, &g) in gradient.iter().enumerate() {
                let (keys, g) = (i..i + 1, std::hint::black_box(g));
                let slots = [&mut a[keys.clone()], &mut b[keys.clone()]];
                rule.step(&mut theta[keys], &[g], slots, &step);
            }
            for (new, alone) in new.iter().zip(&alone).take(1 + rule.slots().len()) {
                // Of NaNs there are several.
                let is_same =
                    |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                assert!(new.iter().zip(alone).all(is_same), "{text}, {n} elements");
            }
        }
    }
}
