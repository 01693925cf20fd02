# Runs inside a machine of a pair, as its whole work: does what comes over the second serial line.
set -eu
number=$(sed -n 's/.*heddle.machine=\([12]\).*/\1/p' /proc/cmdline)
ahead=$(sed -n 's/.*heddle.ahead=\([0-9]*\).*/\1/p' /proc/cmdline)
[ -z "$ahead" ] || date -s "@$(($(date +%s) + ahead))"
stty -F /dev/ttyS1 raw -echo
# Emulation is some ten times slower than the machine below it.
export HEDDLE_SLOWNESS=10
case $(cat /proc/cmdline) in
*heddle.earlier*) export HEDDLE_BIN=/usr/local/bin/heddle-earlier ;;
esac
exec xtask machine "$number" eth0 /dev/ttyS1
