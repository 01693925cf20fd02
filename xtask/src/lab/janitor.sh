# Removes one lab: $1 is its cgroup, $2 its folder. Waits for a word on standard input first:
# "keep" leaves the lab up, "now" or the end of the input (the owner is dead) removes it.
trap '' INT TERM HUP PIPE
cgroup=$1 directory=$2
# Entered now: where the lab mounted the tree itself, the path is gone with the processes that are killed. Where it
# cannot be entered it is gone already: another janitor was quicker.
entered=
[ -n "$cgroup" ] && cd "$cgroup" 2>/dev/null && entered=yes
word=
read -r word
[ "$word" = keep ] && exit 0

if [ -z "$entered" ] && [ -z "$cgroup" ]; then
    # No cgroup2 mount on this host: the lab had its own, in a mount namespace that may be gone.
    mkdir -p "$directory/cgroup"
    exec unshare --mount --propagation private sh -c \
        'mount -t cgroup2 none "$2/cgroup" && exec sh -c "$1" heddle-janitor "$2/cgroup/${2##*/}" "$2" </dev/null' \
        sh "$HEDDLE_JANITOR" "$directory"
fi

if [ -n "$entered" ]; then
    tries=0
    while :; do
        echo 1 2>/dev/null >cgroup.kill
        find . -mindepth 1 -depth -type d -exec rmdir {} \; 2>/dev/null
        rmdir "../${cgroup##*/}" 2>/dev/null
        [ -e cgroup.procs ] || break
        tries=$((tries + 1))
        [ "$tries" -gt 100 ] && { echo "heddle: cgroup $cgroup is still in use" >&2; exit 1; }
        sleep 0.05
    done
fi
cd /
# Nothing is mounted below the folder for this process unless the lab had to mount the tree itself: never remove through it.
umount "$directory/cgroup" 2>/dev/null
rm -rf --one-file-system -- "$directory" || exit 1
rmdir "${directory%/*}" 2>/dev/null
[ "$word" = now ] || [ ! -t 2 ] || echo "heddle: lab ${directory##*/} removed" >&2
exit 0
