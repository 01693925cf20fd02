# Runs inside the machine, as its whole work.
set -eu
echo "kernel $(uname -r)"
test -s /sys/kernel/btf/vmlinux
echo "BTF $(wc -c </sys/kernel/btf/vmlinux) bytes"
# Emulation is some ten times slower than the machine below it.
export HEDDLE_SLOWNESS=10
exec xtask demo --inner
