# Inside a node's mount namespace: folders of its own where a node's programs write, so that the machine's stay as
# they are. $1: the lab's folder, $2: the node's folder in it, $3: the CNI's reference plugins, $4: the cgroup.
set -e
own=$2/fs
mkdir -p "$own/etc" "$own/opt/cni/bin" "$own/lib/kubelet" "$own/lib/cni" "$own/log/pods" "$own/run" "$own/sys"
cp -a /etc/. "$own/etc"
mkdir -p "$own/etc/cni/net.d" "$own/etc/heddle"
cp "$3"/* "$own/opt/cni/bin/"
for folder in etc opt; do mount --bind "$own/$folder" "/$folder"; done
for folder in lib log; do mount --bind "$own/$folder" "/var/$folder"; done
mount --bind /var/lib/kubelet /var/lib/kubelet
mount --make-rshared /var/lib/kubelet
# The kubelet writes these and they are the whole machine's: it finds them as it wants them.
setting() {
    echo "$2" >"$own/sys/${1##*/}"
    mount --bind "$own/sys/${1##*/}" "/proc/sys/$1"
}
setting vm/overcommit_memory 1
setting kernel/panic 10
setting kernel/panic_on_oops 1
setting kernel/keys/root_maxkeys 1000000
setting kernel/keys/root_maxbytes 25000000
# Where somebody keeps namespaces by name, a mount of the machine's would stay beneath and be taken for this node's.
umount --no-mtab --lazy /run/netns 2>/dev/null || true
mount -t tmpfs -o mode=755 tmpfs "$own/run"
mkdir -p "$own/run/heddle-lab/${1##*/}" "$own/run/netns" "$own/run/containerd" "$own/run/heddle-cgroup"
mount --bind "$1" "$own/run/heddle-lab/${1##*/}"
mount --no-mtab --move "$own/run" /run
mount --no-mtab --bind "$4" /run/heddle-cgroup
mount --no-mtab --make-rshared /run
