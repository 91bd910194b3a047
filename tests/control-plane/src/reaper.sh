# Stands by a test process and cleans up after it. Each line on standard input adds an entry to the list below, or with
# `forget ` before it takes it off again. At end of file that process is gone, however it died: what is still on the list is
# killed and removed.
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

# What was just killed may still be writing its last file, so that `rm` finds a directory not empty.
remove() {
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        rm -rf -- "$@" 2>/dev/null && return
        sleep 0.2
    done
}

# A control group can be removed when its last process is gone, its children before it.
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
