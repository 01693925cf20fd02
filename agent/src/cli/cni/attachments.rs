//! Which of the runtime's attachments are whose: what `GC` lets go is named by the container, and the agent knows pods.
//!
//! A file for each, beside the agent's socket: it outlives the agent and, like everything in `/run`, not the machine.
//! Nothing is decided by them but which pod the agent is asked to let go.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The folder, beside the agent's socket.
const FOLDER: &str = "attachments";

/// What the specification knows an attachment by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Attachment {
    #[serde(rename = "containerID")]
    pub container: String,
    #[serde(rename = "ifname")]
    pub interface: String,
}

impl Attachment {
    /// The file's name. A container's is made of letters, digits, `_`, `.` and `-` and begins with none of the last three;
    /// an interface's has no `:`.
    fn file(&self) -> Option<String> {
        let begins = |text: &str| text.starts_with(|it: char| it.is_ascii_alphanumeric());
        let container = |it: char| it.is_ascii_alphanumeric() || "_.-".contains(it);
        let sound = begins(&self.container) && self.container.chars().all(container);
        let interface = |it: char| it.is_ascii_graphic() && !"/:".contains(it);
        let sound = sound && !self.interface.is_empty() && self.interface.chars().all(interface);
        sound.then(|| format!("{}:{}", self.container, self.interface))
    }

    fn of_file(name: &str) -> Option<Self> {
        let (container, interface) = name.split_once(':')?;
        Some(Self { container: container.to_owned(), interface: interface.to_owned() })
    }
}

/// Whose an attachment is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub netns: PathBuf,
}

/// The attachments of the agent with this socket.
pub(super) struct Attachments(PathBuf);

impl Attachments {
    pub(super) fn of(socket: &Path) -> Self {
        Self(socket.with_file_name(FOLDER))
    }

    /// Keeps one.
    ///
    /// # Errors
    /// There has been no agent yet, or the disk is full. The pod's end is seen by its namespace in any case.
    pub(super) fn keep(&self, attachment: &Attachment, owner: &Owner) -> io::Result<()> {
        let Some(name) = attachment.file() else { return Ok(()) };
        match fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // One that is written to its end alone bears a name that is read.
        let unborn = self.0.join(format!(".{name}"));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unborn)?;
        file.write_all(&serde_json::to_vec(owner)?)?;
        fs::rename(&unborn, self.0.join(name))
    }

    /// Forgets one, known or not.
    pub(super) fn forget(&self, attachment: &Attachment) {
        if let Some(name) = attachment.file() {
            // What cannot be removed is asked for again by the next `GC`.
            let _ = fs::remove_file(self.0.join(name));
        }
    }

    /// Those that are not among the valid ones, and whose each is.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) fn stale(&self, valid: &BTreeSet<Attachment>) -> io::Result<Vec<(Attachment, Owner)>> {
        let listed = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed?,
        };
        let mut stale = Vec::new();
        for entry in listed {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'));
            let Some(attachment) = name.and_then(Attachment::of_file) else { continue };
            if valid.contains(&attachment) {
                continue;
            }
            match fs::read(&path).map(|text| serde_json::from_slice(&text)) {
                Ok(Ok(owner)) => stale.push((attachment, owner)),
                // Nobody can be let go by it.
                Ok(Err(_)) => self.forget(&attachment),
                // Its `DEL` came between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str) -> Attachment {
        Attachment { container: container.to_owned(), interface: "eth0".to_owned() }
    }

    fn owner(name: &str) -> Owner {
        Owner {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: "u".to_owned(),
            netns: format!("/run/netns/{name}").into(),
        }
    }

    #[test]
    fn those_that_are_not_valid_are_stale_and_what_is_forgotten_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let attachments = Attachments::of(&dir.path().join("agent.sock"));
        assert!(attachments.stale(&BTreeSet::new()).unwrap().is_empty(), "there has been none yet");
        for name in ["c1", "c2", "c3"] {
            attachments.keep(&attachment(name), &owner(name)).unwrap();
        }
        let valid = BTreeSet::from([attachment("c1")]);
        let mut stale = attachments.stale(&valid).unwrap();
        stale.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(stale, [(attachment("c2"), owner("c2")), (attachment("c3"), owner("c3"))]);
        attachments.forget(&attachment("c2"));
        attachments.forget(&attachment("c2"));
        assert_eq!(attachments.stale(&valid).unwrap().len(), 1);
        // Another interface of the same container is another attachment.
        let other = Attachment { interface: "net1".to_owned(), ..attachment("c3") };
        assert_eq!(attachments.stale(&BTreeSet::from([attachment("c1"), other])).unwrap().len(), 1);
    }

    #[test]
    fn no_name_leads_out_of_the_folder_and_what_cannot_be_read_is_nobody_s() {
        let dir = tempfile::tempdir().unwrap();
        let attachments = Attachments::of(&dir.path().join("agent.sock"));
        attachments.keep(&attachment("c1"), &owner("c1")).unwrap();
        fs::write(dir.path().join("kept"), "").unwrap();
        for name in ["../kept", "", ".", "a/b", ".c1", "c:1"] {
            attachments.keep(&attachment(name), &owner("x")).unwrap();
            attachments.forget(&attachment(name));
        }
        assert!(dir.path().join("kept").exists());
        let folder = dir.path().join(FOLDER);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::write(folder.join("c1:eth0"), "{").unwrap();
        assert!(attachments.stale(&BTreeSet::new()).unwrap().is_empty());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}
