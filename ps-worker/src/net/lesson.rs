//! What a failed connection teaches: that trying again will not help, and what the user can do.
//!
//! Knows TLS's words for trouble, and no calls.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use ps_common::{Error, ErrorCode};
use tokio_rustls::rustls::{self, AlertDescription, CertificateError};

/// What the latest connection has taught, shared by all that use it.
#[derive(Debug, Clone, Default)]
pub(super) struct Lesson(Arc<Mutex<Option<Error>>>);

impl Lesson {
    /// Nothing is known of the next connection.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Why there is no point in trying again, if there is none.
    pub(super) fn learned(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The server has answered plaintext with a record of TLS.
    pub(super) fn speaks_tls(&self) {
        self.learn(mismatch("the server speaks TLS: use https://HOST:PORT and --tls-ca"));
    }

    /// Looks whether TLS says in `error` what is wrong for good.
    pub(super) fn note_tls(&self, error: &io::Error) {
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(lesson) = cause.and_then(of_tls) {
            self.learn(lesson);
        }
    }

    fn learn(&self, lesson: Error) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(lesson);
    }
}

fn mismatch(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::ConfigMismatch, what)
}

fn of_tls(error: &rustls::Error) -> Option<Error> {
    match error {
        rustls::Error::InvalidCertificate(reason) => Some(mismatch(of_certificate(reason))),
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            Some(mismatch("the server does not speak TLS: use http://HOST:PORT"))
        }
        rustls::Error::AlertReceived(alert) => of_alert(*alert),
        _ => None,
    }
}

/// The server's certificate is not accepted here.
fn of_certificate(reason: &CertificateError) -> String {
    match reason {
        // A CA of the same name with another key gives a bad signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the server's certificate is signed by an unknown CA: --tls-ca must name the CA that \
             signed it"
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired: it needs a new --tls-cert".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the server's certificate is for another name: --tls-name NAME ({reason})")
        }
        other => format!("the server's certificate is not accepted: {other}"),
    }
}

/// The server does not accept what it was shown.
fn of_alert(alert: AlertDescription) -> Option<Error> {
    let refused = |what: &str| Some(Error::new(ErrorCode::Unauthenticated, what));
    match alert {
        AlertDescription::CertificateRequired => {
            refused("the server wants a certificate: --tls-cert and --tls-key")
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => refused(
            "the certificate in --tls-cert is signed by a CA unknown to the server: its \
             --tls-client-ca names another one",
        ),
        AlertDescription::CertificateExpired => {
            refused("the certificate in --tls-cert has expired: make a new one")
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => {
            refused("the server does not accept the certificate in --tls-cert")
        }
        AlertDescription::ProtocolVersion => Some(mismatch("the server does not speak TLS 1.3")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_for_good_is_told_with_its_flag_and_the_rest_is_not() {
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let expired = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let name = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        let plain = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        let alert = rustls::Error::AlertReceived;
        for (error, says) in [
            (unknown, Some("signed by an unknown CA: --tls-ca")),
            (expired, Some("expired")),
            (name, Some("--tls-name")),
            (plain, Some("use http://")),
            (alert(AlertDescription::CertificateRequired), Some("--tls-cert and --tls-key")),
            (alert(AlertDescription::UnknownCA), Some("--tls-client-ca")),
            (alert(AlertDescription::CertificateExpired), Some("expired")),
            (alert(AlertDescription::InternalError), None),
            (rustls::Error::HandshakeNotComplete, None),
        ] {
            let lesson = Lesson::default();
            lesson.note_tls(&io::Error::new(io::ErrorKind::InvalidData, error));
            let learned = lesson.learned().map(|error| error.message);
            match says {
                None => assert_eq!(learned, None),
                Some(says) => assert!(learned.is_some_and(|text| text.contains(says)), "{says}"),
            }
            lesson.forget();
            assert_eq!(lesson.learned(), None);
        }
        let lesson = Lesson::default();
        lesson.note_tls(&io::Error::from(io::ErrorKind::ConnectionReset));
        assert_eq!(lesson.learned(), None);
    }
}
