//! The condition `Accepted` of Heddle's own rules, in their status.

use super::events::{cut, note};
use crate::cluster::kubernetes::whole::Object;
use heddle_policy::{Problem, Severity};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Whose fields these are.
const OWNER: &str = "heddle-controller";
const TYPE: &str = "Accepted";
/// Of a message, which names every problem.
const MESSAGE_BYTES: usize = 4096;

/// What is to be said of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    status: &'static str,
    reason: &'static str,
    message: String,
    generation: Option<i64>,
}

/// What was said, by UID.
#[derive(Default)]
pub(super) struct Conditions(HashMap<String, Said>);

/// Whether an object has such a condition.
pub(super) fn has(object: &Object) -> bool {
    matches!(object.kind.as_str(), "AccessRule" | "ClusterAccessRule")
}

fn said(object: &Object, problems: &[&Problem]) -> Said {
    let errors = problems.iter().any(|it| it.severity == Severity::Error);
    let told: Vec<String> =
        problems.iter().filter(|it| it.severity != Severity::Note).map(|it| note(it)).collect();
    let (status, reason) = match (errors, told.is_empty()) {
        (true, _) => ("False", "NotInForce"),
        (false, false) => ("True", "Doubtful"),
        (false, true) => ("True", "Accepted"),
    };
    Said { status, reason, message: cut(told.join("; "), MESSAGE_BYTES), generation: object.generation }
}

impl Conditions {
    /// Of every rule what is to be said and was not yet. Rules that are gone are forgotten.
    pub(super) fn due<'a>(
        &mut self,
        rules: impl Iterator<Item = (&'a Object, Vec<&'a Problem>)>,
    ) -> Vec<(&'a Object, Said)> {
        let mut before = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for (object, problems) in rules.filter(|(object, _)| has(object)) {
            let said = said(object, &problems);
            match before.remove(&object.uid) {
                Some(known) if known == said => {
                    self.0.insert(object.uid.clone(), known);
                }
                _ => due.push((object, said)),
            }
        }
        due
    }

    /// It is in the object's status.
    pub(super) fn told(&mut self, object: &Object, said: Said) {
        self.0.insert(object.uid.clone(), said);
    }
}

/// Writes it into the object's status, unless it is there already. Gives whether it was written.
///
/// # Errors
/// The API server does not take it.
pub(super) async fn write(client: &Client, object: &Object, said: &Said) -> Result<bool, kube::Error> {
    let (group, version) = object.api_version.split_once('/').unwrap_or(("", &object.api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &object.kind));
    let api: Api<DynamicObject> = match &object.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let Some(now) = api.get_opt(&object.name).await? else { return Ok(false) };
    if now.metadata.uid.as_ref() != Some(&object.uid) {
        return Ok(false);
    }
    let known = condition(&now.data);
    let same = |it: &Condition| {
        (it.status.as_str(), it.reason.as_str(), it.message.as_str(), it.observed_generation)
            == (said.status, said.reason, said.message.as_str(), said.generation)
    };
    if known.as_ref().is_some_and(same) {
        return Ok(false);
    }
    let since = known.filter(|it| it.status == said.status).map(|it| it.last_transition_time);
    let condition = Condition {
        type_: TYPE.to_owned(),
        status: said.status.to_owned(),
        reason: said.reason.to_owned(),
        message: said.message.clone(),
        observed_generation: said.generation,
        last_transition_time: since.unwrap_or_else(|| Time(Timestamp::now())),
    };
    let patch = json!({
        "apiVersion": object.api_version, "kind": object.kind,
        // Of this very object: not of another that has its name by now.
        "metadata": {"name": object.name, "namespace": object.namespace, "uid": object.uid},
        "status": {"conditions": [condition]},
    });
    let parameters = PatchParams::apply(OWNER).force();
    api.patch_status(&object.name, &parameters, &Patch::Apply(patch)).await.map(|_| true)
}

fn condition(object: &Value) -> Option<Condition> {
    let all = object.pointer("/status/conditions")?.as_array()?;
    let own = all.iter().find(|it| it.get("type").and_then(Value::as_str) == Some(TYPE))?;
    serde_json::from_value(own.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_policy::Origin;

    fn rule(kind: &str, generation: i64) -> Object {
        Object {
            api_version: "heddle.io/v1alpha1".to_owned(),
            kind: kind.to_owned(),
            namespace: None,
            name: "r".to_owned(),
            uid: "u".to_owned(),
            generation: Some(generation),
            text: "".into(),
        }
    }

    #[test]
    fn a_rule_s_condition_is_told_when_it_or_the_rule_changes() {
        let problem = |severity| Problem::new(severity, &Origin::default(), "is wrong").field("spec", 0);
        let (error, doubt) = (problem(Severity::Error), problem(Severity::Warning));
        let note = problem(Severity::Note);
        let (first, second) = (rule("AccessRule", 1), rule("AccessRule", 2));
        let mut conditions = Conditions::default();
        let mut tell = |object: &Object, problems: Vec<&Problem>| {
            let due = conditions.due([(object, problems)].into_iter());
            let said = due.into_iter().next().map(|(_, said)| said);
            if let Some(said) = &said {
                conditions.told(object, said.clone());
            }
            said.map(|it| (it.status, it.reason, it.message))
        };
        let sound = Some(("True", "Accepted", String::new()));
        assert_eq!(tell(&first, vec![&note]), sound);
        assert_eq!(tell(&first, vec![]), None, "nothing is new");
        let wrong = "spec: is wrong; spec: is wrong".to_owned();
        assert_eq!(tell(&first, vec![&error, &doubt]), Some(("False", "NotInForce", wrong)));
        assert_eq!(tell(&first, vec![&doubt]), Some(("True", "Doubtful", "spec: is wrong".to_owned())));
        assert_eq!(tell(&second, vec![&doubt]).unwrap().1, "Doubtful", "of another generation");
        assert_eq!(tell(&rule("Server", 1), vec![&error]), None, "its status is not ours");
    }
}
