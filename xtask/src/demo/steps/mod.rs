//! The steps, in their order.

mod death;
mod live;
mod maps;
mod outside;
mod refusals;
mod same_node;
pub mod wire;

use anyhow::Result;

use self::wire::WithoutMesh;
use super::{report::Step, scene::Scene};

/// A step of the demo.
pub struct Act {
    pub letter: char,
    pub title: &'static str,
    pub show: fn(&mut Scene, Option<&WithoutMesh>, &mut Step) -> Result<()>,
}

/// All of them.
pub const ALL: [Act; 7] = [
    Act {
        letter: 'a',
        title: "A permitted request across nodes is ciphertext on the wire",
        show: wire::show,
    },
    Act { letter: 'b', title: "Everybody else is refused, and told by which rule", show: refusals::show },
    Act { letter: 'c', title: "On one node the kernel carries it alone, by identity", show: same_node::show },
    Act {
        letter: 'd',
        title: "An edited rule holds within a second, for live connections too",
        show: live::show,
    },
    Act {
        letter: 'e',
        title: "The agent killed: refused, nothing in the clear, and back again",
        show: death::show,
    },
    Act { letter: 'f', title: "What the kernel holds, readable by a person", show: maps::show },
    Act { letter: 'g', title: "Outside the mesh: as defaultOutbound says", show: outside::show },
];
