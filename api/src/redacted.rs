//! Messages with secrets: what they print, and that they leave nothing behind.

use std::fmt;

use zeroize::Zeroize;

use crate::admin::{RotateTokenReply, RotateTokenRequest};
use crate::datapath::DataKey;

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKey")
            .field("index", &self.index)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for DataKey {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for RotateTokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotateTokenRequest")
            .field("grace_minutes", &self.grace_minutes)
            .finish_non_exhaustive()
    }
}

impl Drop for RotateTokenRequest {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl fmt::Debug for RotateTokenReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotateTokenReply")
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl Drop for RotateTokenReply {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{DataKeys, ServeRequest};

    #[test]
    fn a_request_with_a_key_does_not_print_it() {
        let key = DataKey {
            index: 1,
            id: vec![1; 16],
            secret: vec![0xab; 32],
        };
        let request = ServeRequest {
            keys: Some(DataKeys {
                current: 1,
                keys: vec![key],
            }),
            ..Default::default()
        };
        let text = format!("{request:?}");
        assert!(text.contains("DataKey") && !text.contains("171"), "{text}");
    }

    #[test]
    fn a_token_is_not_printed() {
        let request = RotateTokenRequest {
            token: "correct horse".into(),
            grace_minutes: 5,
        };
        let reply = RotateTokenReply {
            token: "correct horse".into(),
            now: None,
        };
        let text = format!("{request:?} {reply:?}");
        assert!(text.contains('5') && !text.contains("horse"), "{text}");
    }
}
