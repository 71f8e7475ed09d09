//! Conditions on labels.
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    /// Its value is one of these.
    In,
    /// It is none of these, or there is no such label.
    NotIn,
    /// There is such a label.
    Exists,
    /// There is none.
    DoesNotExist,
    /// Its value is a whole number above this one.
    Gt,
    /// Its value is a whole number below this one.
    Lt,
}

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

impl Requirement {
    /// What is wrong with it; `None`: nothing.
    pub fn fault(&self) -> Option<String> {
        if self.key.is_empty() {
            return Some("a condition has no key".into());
        }
        let (key, values) = (&self.key, self.values.len());
        match self.operator {
            Operator::In | Operator::NotIn if values == 0 => {
                Some(format!("the condition on {key} has no values"))
            }
            Operator::Exists | Operator::DoesNotExist if values > 0 => Some(format!(
                "the condition on {key} has values, and only asks whether it is there"
            )),
            Operator::Gt | Operator::Lt if values != 1 || number(&self.values[0]).is_none() => {
                Some(format!("the condition on {key} needs one whole number"))
            }
            _ => None,
        }
    }

    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let listed = || value.is_some_and(|v| self.values.contains(v));
        let compared = |is: fn(&i64, &i64) -> bool| {
            let with = self.values.first().and_then(|v| number(v));
            let value = value.and_then(|v| number(v));
            value.zip(with).is_some_and(|(a, b)| is(&a, &b))
        };
        match self.operator {
            Operator::In => listed(),
            Operator::NotIn => !listed(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => compared(i64::gt),
            Operator::Lt => compared(i64::lt),
        }
    }
}

fn number(text: &str) -> Option<i64> {
    text.trim().parse().ok()
}

/// Whether labels meet all conditions.
pub fn matches(conditions: &[Requirement], labels: &BTreeMap<String, String>) -> bool {
    conditions.iter().all(|c| c.holds(labels))
}
