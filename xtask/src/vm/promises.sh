# Runs inside the machine, as its whole work: the tests whose numbers stand on the kernel's command line.
set -u
export HEDDLE_XTASK=/usr/local/bin/xtask HEDDLE_BIN=/usr/local/bin/heddle HEDDLE_BPF=/heddle.o
word() {
    sed -n "s/.*heddle.$1=\([^ ]*\).*/\1/p" /proc/cmdline
}
# There where an earlier build was named.
[ ! -e /tests/earlier ] || export HEDDLE_EARLIER=/tests/earlier
HEDDLE_SLOWNESS=$(word slowness)
export HEDDLE_SLOWNESS
# As hosts allow it: a test that is several nodes opens thousands.
ulimit -n 65536
limit=$(word limit)
for number in $(word tests | tr ',' ' '); do
    line=$(sed -n "$((number + 1))p" /tests/list)
    binary=${line%% *}
    name=${line#* }
    echo "MARKER begins $number"
    began=$(date +%s)
    timeout --kill-after=30 "$limit" "/tests/$binary" --exact "$name" --include-ignored --test-threads=1 --nocapture \
        >/tmp/log 2>&1
    code=$?
    # A test that cannot show its promise on this kernel says why, and is not counted as held. What is written as it comes,
    # so that it is there when a limit ends the test, begins in the line that names the test.
    reason=$(sed -n -E 's/^(test .* \.\.\. )?not applicable: //p' /tmp/log | head -n 1)
    if [ "$code" -ne 0 ]; then
        tail -n 80 /tmp/log
        reason=$(sed -n -E -e '/^(test .* \.\.\. )?Error: /{s///p;q}' -e '/panicked at/{n;p;q}' /tmp/log | cut -c 1-300)
    fi
    echo "MARKER ended $number $code $(($(date +%s) - began)) $reason"
done
