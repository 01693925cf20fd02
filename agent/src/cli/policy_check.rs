//! `heddle policy check DIR`: what is wrong with manifests, before an agent reads them.

use super::{
    Failure,
    render::{self, print},
};
use crate::cluster::folder::{Folder, Limits};
use heddle_policy::{ClusterSettings, Index, Origin, Problem, Severity};
use std::{collections::BTreeMap, path::Path, process::ExitCode};

/// What a look at a folder found.
struct Findings {
    files: usize,
    resources: usize,
    problems: Vec<Problem>,
    /// Files that cannot be read: their content is not known.
    unreadable: bool,
}

pub(super) fn run(folder: &Path, json: bool) -> Result<ExitCode, Failure> {
    let found = look(folder)?;
    let errors = found.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    let warnings = found.problems.iter().filter(|problem| problem.severity == Severity::Warning).count();
    if json {
        print(
            &serde_json::json!({
                "folder": folder, "files": found.files, "resources": found.resources,
                "errors": errors, "warnings": warnings, "problems": found.problems,
            })
            .to_string(),
        )?;
    } else {
        let mut texts: BTreeMap<&str, Option<String>> = BTreeMap::new();
        for problem in &found.problems {
            let text = texts.entry(&problem.file).or_insert_with(|| quotable(&problem.file));
            print(&format!("{:?}", render::problem(problem, text.as_deref())))?;
        }
        print(&format!(
            "{} resources in {} files: {errors} errors, {warnings} warnings",
            found.resources, found.files
        ))?;
    }
    Ok(ExitCode::from(if found.unreadable { 2 } else { u8::from(errors > 0) }))
}

/// The text to quote from. A FIFO would be waited for, and of what is too long nothing was read.
fn quotable(file: &str) -> Option<String> {
    let meta = std::fs::metadata(file).ok()?;
    let short = meta.is_file() && meta.len() <= Limits::default().file_bytes;
    short.then(|| std::fs::read_to_string(file).ok()).flatten()
}

fn look(path: &Path) -> Result<Findings, Failure> {
    let folder = Folder::inspect(path, Limits::default(), |text, file| {
        Ok(heddle_policy::resources::parse_file(file, text))
    })
    .map_err(|fault| {
        let path = path.display().to_string();
        miette::miette!(help = fault.remedy(&path), "{path} cannot be read: {fault}")
    })?;
    let index = Index::of(folder.contents().map(|(_, parsed)| parsed.as_ref().clone()));
    let parsed = folder.contents().flat_map(|(_, parsed)| parsed.problems.iter().cloned());
    let mut problems: Vec<Problem> = parsed.chain(index.check(&ClusterSettings::default())).collect();
    let status = folder.status();
    let unread = status.stale.iter().map(|stale| (&stale.file, &stale.error, &stale.remedy));
    let blind = status.alarms.iter().map(|alarm| (&alarm.folder, &alarm.error, &alarm.remedy));
    let mut unreadable = false;
    for (file, error, remedy) in unread.chain(blind) {
        unreadable = true;
        problems.push(Problem::new(Severity::Error, &Origin::new(file, 0), error).remedy(remedy));
    }
    problems.sort_by(|a, b| (&a.file, a.line, a.severity).cmp(&(&b.file, b.line, b.severity)));
    Ok(Findings { files: status.files, resources: index.len(), problems, unreadable })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: ServiceAccount\n\
        metadata: {name: web, namespace: shop}\n";

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn code(dir: &Path) -> ExitCode {
        run(dir, true).unwrap()
    }

    #[test]
    fn good_wrong_and_unreadable_folders_end_with_0_1_and_2() {
        assert_eq!(code(folder(&[("a.yaml", GOOD.as_bytes())]).path()), ExitCode::SUCCESS);
        let wrong = GOOD.replace("kind: Namespace", "kind: [");
        assert_eq!(code(folder(&[("a.yaml", wrong.as_bytes())]).path()), ExitCode::from(1));
        assert_eq!(code(folder(&[("a.yaml", b"\xff\xfe")]).path()), ExitCode::from(2));
        assert!(run(Path::new("/nowhere/at/all"), true).is_err());
    }

    #[test]
    fn others_in_a_broken_file_are_looked_at_too_and_problems_are_told_once() {
        let server = "---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: s, namespace: shop}\n\
            spec: {podSelector: {}, port: 70000}\n";
        let text = format!("{GOOD}---\n[\n{server}");
        let found = look(folder(&[("a.yaml", text.as_bytes())]).path()).unwrap();
        let errors: Vec<_> = found.problems.iter().filter(|it| it.severity == Severity::Error).collect();
        assert_eq!(errors.len(), 2, "{errors:#?}");
        assert_eq!((errors[0].document, errors[1].document), (3, 4));
        assert!(errors[1].resource.contains("shop/s"), "{errors:#?}");
    }

    #[test]
    fn a_folder_that_an_agent_would_not_trust_can_be_looked_at() {
        use std::os::unix::fs::PermissionsExt;
        let dir = folder(&[("a.yaml", GOOD.as_bytes())]);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(code(dir.path()), ExitCode::SUCCESS);
    }
}
