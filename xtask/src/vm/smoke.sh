# Runs inside the machine, as its whole work.
set -eu
echo "kernel $(uname -r)"
test -s /sys/kernel/btf/vmlinux
echo "BTF $(wc -c </sys/kernel/btf/vmlinux) bytes"
word() {
    sed -n "s/.*heddle.$1=\([^ ]*\).*/\1/p" /proc/cmdline
}
# Emulation is some ten times slower than the machine below it.
HEDDLE_SLOWNESS=$(word slowness)
export HEDDLE_SLOWNESS="${HEDDLE_SLOWNESS:-10}"
steps=$(word steps)
exec xtask demo --inner ${steps:+--steps "$steps"}
