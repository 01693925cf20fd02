//! Where certificates come from.

use super::{Check, given, object_name};
use crate::cli::config::{Ca, Flags, RemoteCa, file::Ca as File};

/// Exactly one of a folder, memory, SPIRE and an authority that is asked.
pub(super) fn ca(check: &mut Check<'_>, file: File, flags: &Flags) -> Option<Ca> {
    let by_flag =
        flags.ca_folder.is_some() || flags.ca_memory || flags.ca_url.is_some() || flags.ca_spire.is_some();
    let file = if by_flag { File::default() } else { file };
    let memory = given(flags.ca_memory.then_some(&true), file.memory, false);
    let folder = check.optional_path("ca.folder", flags.ca_folder.as_ref(), file.folder);
    let url = given(flags.ca_url.as_ref(), file.url, String::new());
    let spire = check.optional_path("ca.spire", flags.ca_spire.as_ref(), file.spire);
    let named = [folder.is_some(), memory.value, spire.is_some(), !url.value.is_empty()];
    match (folder.map(Ca::Folder).or(spire.map(Ca::Spire)), memory.value) {
        _ if named.iter().filter(|named| **named).count() > 1 => {
            let remedy = "leave all but one of `folder`, `memory`, `spire` and `url` out";
            check.wrong("ca", &memory, "more than one authority is named", remedy);
            None
        }
        (Some(local), _) => Some(local),
        (None, true) => Some(Ca::Memory(true)),
        (None, false) if url.value.is_empty() => {
            check.required(
                "ca",
                "write `ca: {url: https://HOST:PORT, trustBundle: FILE, tokenFile: FILE}` to ask an authority, `ca: {spire: SOCKET}` \
                 to ask SPIRE's agent, `ca: {folder: DIR}` (agents of several nodes share it) or `ca: {memory: true}` (one node alone)",
            );
            None
        }
        (None, false) => {
            let bundle =
                check.optional_path("ca.trustBundle", flags.ca_trust_bundle.as_ref(), file.trust_bundle);
            let token = check.optional_path("ca.tokenFile", flags.ca_token_file.as_ref(), file.token_file);
            for (field, given) in [("ca.trustBundle", &bundle), ("ca.tokenFile", &token)] {
                if given.is_none() {
                    check.required(
                        field,
                        "an authority that is asked is known by its anchors and knows by a token",
                    );
                }
            }
            let parsed = url.value.parse::<hyper::Uri>().ok().filter(|uri| {
                uri.scheme_str() == Some("https")
                    && uri.host().is_some()
                    && uri.path() == "/"
                    && uri.query().is_none()
            });
            if parsed.is_none() {
                check.wrong(
                    "ca.url",
                    &url,
                    format!("`{}` is no address of an authority", url.value),
                    "write it like https://heddle-ca.heddle-system:8443",
                );
            }
            let account = given(
                flags.ca_account.as_ref(),
                file.account,
                heddle_identity::authority::OWN_ACCOUNT.into(),
            );
            let name = object_name(check, "ca.account", &account, "service account");
            parsed?;
            Some(Ca::Remote(RemoteCa {
                url: url.value,
                trust_bundle: bundle?,
                token_file: token?,
                account: name?,
            }))
        }
    }
}
