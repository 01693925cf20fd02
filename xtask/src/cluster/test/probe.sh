# Asks each port named in the arguments (kind@host:port) as its kind is asked, all at once. Of each a line: the
# argument, whether it answered, and what came.
ask() {
    host=${1#*@}
    case $1 in
    http@*) said=$(curl -sS --max-time 8 "http://$host/" 2>&1) wanted=served ;;
    metrics@*) said=$(curl -sS --max-time 8 "http://$host/metrics" 2>&1) wanted=process_start_time_seconds ;;
    redis@*) said=$(timeout 8 redis-cli -h "${host%:*}" -p "${host#*:}" ping 2>&1) wanted=PONG ;;
    grpc@*) said=$(timeout 8 etcdctl --endpoints="$host" --command-timeout=4s put key value 2>&1) wanted=OK ;;
    esac
    answered=no
    case $said in *"$wanted"*) answered=yes said=$wanted ;; esac
    echo "$1 $answered $said" | while read -r line; do echo "$line" && break; done
}
for end; do ask "$end" & done
wait
