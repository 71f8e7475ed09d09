//! Messages with secrets: what they print, and that they leave nothing behind.

use std::fmt;

use zeroize::Zeroize;

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
}
