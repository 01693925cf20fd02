use std::collections::BTreeMap;

/// How a requirement compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// One of a selector's `matchExpressions`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it compares.
    pub operator: Operator,
    /// With what.
    pub values: Vec<String>,
}

/// A label selector. An empty one selects everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selector {
    /// Labels that must be equal.
    pub labels: BTreeMap<String, String>,
    /// Further requirements, all of which must hold.
    pub expressions: Vec<Requirement>,
}

impl Selector {
    /// Whether it selects what bears `labels`.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|requirement| requirement.holds(labels.get(&requirement.key)))
    }
}

impl Requirement {
    fn holds(&self, label: Option<&String>) -> bool {
        match (self.operator, label) {
            (Operator::In, Some(value)) => self.values.contains(value),
            (Operator::In, None) | (Operator::Exists, None) | (Operator::DoesNotExist, Some(_)) => false,
            // As everywhere in Kubernetes, a label that is missing is not in any list.
            (Operator::NotIn, Some(value)) => !self.values.contains(value),
            (Operator::NotIn, None) | (Operator::Exists, Some(_)) | (Operator::DoesNotExist, None) => true,
        }
    }
}
