# Runs inside the machine, as its whole work.
set -eu
echo "kernel $(uname -r)"
test -s /sys/kernel/btf/vmlinux
echo "BTF $(wc -c </sys/kernel/btf/vmlinux) bytes"
bpftool btf dump file /sys/kernel/btf/vmlinux format raw | grep -c "" | sed 's/$/ lines of types/'
bpftool prog loadall /heddle.o /sys/fs/bpf/smoke pinmaps /sys/fs/bpf/smoke-maps
bpftool prog show | grep -E '^[0-9]+: '
ls /sys/fs/bpf/smoke-maps
