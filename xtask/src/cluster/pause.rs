//! The process that holds a pod's namespaces: it does nothing, and ends when it is told to.

fn main() {
    loop {
        std::thread::park();
    }
}
