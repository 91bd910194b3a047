# The first process of a node in its network, mount and process namespaces. It prepares them, then holds them open.
#   $1  the directory of the node; $1/disk keeps its data after a power cut
#   $2  a program that waits and reaps processes
set -eu
disk=$1/disk
mount --make-rshared /
for directory in /run /var/lib /var/log; do
    mount -t tmpfs -o mode=755 tmpfs "$directory"
done
for directory in /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log/pods /var/log/containers; do
    mkdir -p "$disk$directory" "$directory"
    mount --bind "$disk$directory" "$directory"
done
# These settings belong to the whole machine, and the kubelet would change them. The mounted files show it the values that it wants.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=/run/sysctl-$(echo "${setting%=*}" | tr / -)
    echo "${setting#*=}" >"$file"
    [ ! -e "/proc/sys/${setting%=*}" ] || mount --bind "$file" "/proc/sys/${setting%=*}"
done
# These settings belong to this network namespace only.
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
touch /run/prepared
exec "$2"
