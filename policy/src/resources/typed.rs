//! Values into types, with the path of whatever does not fit.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::tree::key_path;

/// A value that is not of the type that it should be.
pub(super) struct Unreadable {
    pub(super) path: String,
    pub(super) reason: String,
}

/// Reads a value at `path` into its type, and tells the paths of the fields that the type does not know.
pub(super) fn typed<T: DeserializeOwned>(value: &Value, path: &str) -> Result<(T, Vec<String>), Unreadable> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = serde_ignored::deserialize(deserializer, |ignored| {
        let mut at = path.to_owned();
        extend(&mut at, &ignored);
        unknown.push(at);
    });
    match result {
        Ok(value) => Ok((value, unknown)),
        Err(error) => {
            let inner = track.path().to_string();
            let path = match (path, inner.as_str()) {
                (path, ".") => path.to_owned(),
                ("", inner) => inner.to_owned(),
                (path, inner) if inner.starts_with('[') => format!("{path}{inner}"),
                (path, inner) => format!("{path}.{inner}"),
            };
            Err(Unreadable { path, reason: error.to_string() })
        }
    }
}

fn extend(path: &mut String, ignored: &serde_ignored::Path<'_>) {
    use serde_ignored::Path;
    match ignored {
        Path::Root => {}
        Path::Seq { parent, index } => {
            extend(path, parent);
            path.push_str(&format!("[{index}]"));
        }
        Path::Map { parent, key } => {
            extend(path, parent);
            *path = key_path(path, key);
        }
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            extend(path, parent);
        }
    }
}
