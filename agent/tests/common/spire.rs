//! A real SPIRE beside the lab's agents: a server and an agent for each node.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use xtask::lab::{Lab, Place, Running, eventually};

const SOON: Duration = Duration::from_secs(60);
const PORT: u16 = 8081;
const TRUST_DOMAIN: &str = "spiffe://cluster.local";

/// A server of SPIRE's, and how it is spoken to.
pub struct Spire {
    programs: PathBuf,
    directory: PathBuf,
    place: Place,
    _server: Running,
}

impl Spire {
    /// Starts a server in the lab's own place, where the nodes' agents of SPIRE's run, too.
    pub fn serve(lab: &Lab, programs: &Path) -> Result<Self> {
        let directory = lab.directory().join("spire");
        std::fs::create_dir_all(&directory)?;
        let place = lab.router().clone();
        let config = directory.join("server.conf");
        let of = |name: &str| directory.join(name).display().to_string();
        std::fs::write(
            &config,
            format!(
                r#"server {{
  bind_address = "127.0.0.1"
  bind_port = "{PORT}"
  socket_path = "{socket}"
  trust_domain = "cluster.local"
  data_dir = "{data}"
  log_level = "INFO"
  ca_ttl = "24h"
  default_x509_svid_ttl = "1h"
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3", connection_string = "{data}/store.sqlite3" }} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
}}
"#,
                socket = of("server.sock"),
                data = of("server"),
            ),
        )?;
        std::fs::create_dir_all(directory.join("server"))?;
        let program = programs.join("spire-server").display().to_string();
        let server = place.spawn(&[&program, "run", "-config", &config.display().to_string()])?;
        let spire = Self { programs: programs.to_owned(), directory, place, _server: server };
        eventually("SPIRE's server to answer", SOON, || Ok(spire.tell(&["healthcheck"]).is_ok()))
            .with_context(|| spire._server.stderr() + &spire._server.stdout())?;
        Ok(spire)
    }

    /// A command of the server's.
    pub fn tell(&self, words: &[&str]) -> Result<String> {
        let program = self.programs.join("spire-server").display().to_string();
        let socket = self.directory.join("server.sock").display().to_string();
        // A command is one word or three; its flags follow.
        let command = words.iter().take_while(|word| !word.starts_with('-')).count();
        let (command, flags) = words.split_at(command);
        self.place.check(&[&[program.as_str()], command, &["-socketPath", &socket], flags].concat())
    }

    /// The anchors, in PEM.
    pub fn bundle(&self) -> Result<String> {
        self.tell(&["bundle", "show"])
    }

    /// An entry of an account for a node's agent; gives its id.
    pub fn entry(&self, node: &str, path: &str, selectors: &[&str], more: &[&str]) -> Result<String> {
        let (parent, id) = (format!("{TRUST_DOMAIN}/{node}"), format!("{TRUST_DOMAIN}{path}"));
        let mut words = vec!["entry", "create", "-parentID", &parent, "-spiffeID", &id];
        words.extend(selectors.iter().flat_map(|selector| ["-selector", selector]));
        words.extend(more);
        let said = self.tell(&words)?;
        let id = said.lines().find_map(|line| line.strip_prefix("Entry ID")).context("no entry")?;
        Ok(id.trim_start_matches([' ', ':']).to_owned())
    }

    /// An entry of an account of `shop` for a node's agent.
    pub fn account(&self, node: &str, account: &str, more: &[&str]) -> Result<String> {
        let selector = format!("k8s:sa:{account}");
        self.entry(node, &format!("/ns/shop/sa/{account}"), &["k8s:ns:shop", &selector], more)
    }

    /// The admin socket of a node's agent.
    pub fn socket(&self, node: &str) -> PathBuf {
        self.directory.join(format!("{node}-admin/admin.sock"))
    }

    /// Starts a node's agent, which takes root's processes for a delegate. One that was started before goes on with what it
    /// has kept.
    pub fn agent(&self, node: &str) -> Result<Running> {
        let config = self.directory.join(format!("{node}.conf"));
        if !config.exists() {
            let node_id = format!("{TRUST_DOMAIN}/{node}");
            let said = self.tell(&["token", "generate", "-spiffeID", &node_id])?;
            let token = said.split_whitespace().nth(1).context("no token")?;
            self.entry(node, "/heddle-agent", &["unix:uid:0"], &[])?;
            let bundle = self.directory.join("bundle.pem");
            std::fs::write(&bundle, self.bundle()?)?;
            let data = self.directory.join(node);
            for folder in [&data, &self.directory.join(format!("{node}-admin"))] {
                std::fs::create_dir_all(folder)?;
            }
            let text = format!(
                r#"agent {{
  data_dir = "{data}"
  log_level = "INFO"
  server_address = "127.0.0.1"
  server_port = "{PORT}"
  socket_path = "{data}/public/api.sock"
  admin_socket_path = "{admin}"
  trust_domain = "cluster.local"
  trust_bundle_path = "{bundle}"
  join_token = "{token}"
  authorized_delegates = ["{TRUST_DOMAIN}/heddle-agent"]
}}
plugins {{
  KeyManager "disk" {{ plugin_data {{ directory = "{data}" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#,
                data = data.display(),
                admin = self.socket(node).display(),
                bundle = bundle.display(),
            );
            std::fs::write(&config, text)?;
        }
        let program = self.programs.join("spire-agent").display().to_string();
        let agent = self.place.spawn(&[&program, "run", "-config", &config.display().to_string()])?;
        eventually("SPIRE's agent to listen", SOON, || {
            Ok(std::os::unix::net::UnixStream::connect(self.socket(node)).is_ok())
        })
        .with_context(|| agent.stderr() + &agent.stdout())?;
        Ok(agent)
    }
}
