# Cleans up after a test process. Each line on standard input adds an entry to the list below; the prefix `forget ` removes the entry.
# The end of the input means that the process is gone, for any reason. The script then kills or removes the remaining entries.
trap '' HUP INT TERM
set -f
newline='
'
IFS=$newline
entries=
keep_logs=

while read -r line; do
    case $line in
    keep-logs) keep_logs=yes ;;
    "forget "*)
        left=
        for entry in $entries; do
            [ "$entry" = "${line#forget }" ] || left=$left$entry$newline
        done
        entries=$left
        ;;
    *) entries=$entries$line$newline ;;
    esac
done

for entry in $entries; do
    case $entry in
    "group "*) kill -s KILL -- "-${entry#group }" 2>/dev/null ;;
    esac
done

# A killed process may still write its last file, so that `rm` finds a directory that is not empty.
remove() {
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        rm -rf -- "$@" 2>/dev/null && return
        sleep 0.2
    done
}

# A control group can be removed after its last process has ended and its children are removed.
for entry in $entries; do
    case $entry in
    "cgroups "*)
        set +f
        for attempt in 1 2 3 4 5 6 7 8 9 10; do
            find /sys/fs/cgroup/*/"${entry#cgroups }" -depth -type d -exec rmdir {} + 2>/dev/null && break
            ls -d /sys/fs/cgroup/*/"${entry#cgroups }" >/dev/null 2>&1 || break
            sleep 0.2
        done
        set -f
        ;;
    esac
done

for entry in $entries; do
    case $entry in
    "directory "*)
        directory=${entry#directory }
        if [ "$keep_logs" ]; then
            set +f
            for part in "$directory"/*; do
                [ "$part" = "$directory/logs" ] || remove "$part"
            done
            set -f
        else
            remove "$directory"
        fi
        ;;
    esac
done
