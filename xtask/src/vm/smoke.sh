# Runs inside the machine, as its whole work.
set -eu
echo "kernel $(uname -r)"
test -s /sys/kernel/btf/vmlinux
echo "BTF $(wc -c </sys/kernel/btf/vmlinux) bytes"
exec xtask demo --inner
