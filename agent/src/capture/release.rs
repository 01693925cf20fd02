//! Takes down what no pin holds.

use std::path::Path;

use heddle_ebpf::attach::{Veth, maps};

use super::{error::CaptureError, kernel::Kernel, links, maps::Pins, namespace::Namespace, programs};

/// Takes off the interfaces what no pin holds: below 6.6 the guard is a filter of the interface. Says what it removed.
///
/// # Errors
/// When the pinned pods cannot be read, or the host's interfaces.
pub fn release_guards(bpffs: &Path) -> Result<Vec<String>, CaptureError> {
    let pins = Pins::new(Kernel::version_directory(bpffs).join("maps"));
    if !pins.path(maps::VETHS).exists() {
        return Ok(Vec::new());
    }
    let veths = pins.hash::<u32, Veth>(maps::VETHS)?;
    let home = Namespace::own()?;
    let interfaces =
        links::interfaces(&home).map_err(CaptureError::system("listing the host's interfaces"))?;
    let mut removed = Vec::new();
    for index in veths.keys().flatten() {
        if let Some(interface) = interfaces.iter().find(|interface| interface.index == index)
            && programs::detach_guard(&interface.name)
        {
            removed.push(format!("the guard on {}", interface.name));
        }
    }
    Ok(removed)
}
