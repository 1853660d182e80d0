#compdef outboxctl
# Completion of outboxctl for zsh.
_outboxctl() {
    local -a common where
    common=(
        '(-h --help)'{-h,--help}'[help with examples]'
        '(-d --dbname)'{-d,--dbname}'[database or connection string]:conninfo:'
        '--redis[URL of Redis]:url:'
        '--redis-password-file[file with the password of Redis]:file:_files'
        '--sink[sink]:name:'
        '--json[JSON for scripts]'
    )
    where=('--topic[only this topic]:topic:' '--group[only this consumer group]:group:')
    local command=$words[2]
    if (( CURRENT == 2 )); then
        _values command 'status[sinks, streams and groups]' 'tail[follow the streams]' 'show[the life of an event]' \
            'groups[consumer groups]' 'dlq[dead letters]' 'replay[append events again]' 'verify[compare with the streams]' 'doctor[what is wrong]' \
            '-h[help]' '--help[help]' '--version[version]'
        return
    fi
    if [[ $command == dlq ]]; then
        if (( CURRENT == 3 )); then
            _values command 'ls[list]' 'show[all of one]' 'redrive[deliver again]' 'discard[delete]' '-h[help]' '--help[help]'
            return
        fi
        command="dlq $words[3]"
    fi
    case $command in
    status) _arguments $common '(-w --watch)'{-w,--watch}'[a live screen]' '--interval[between two looks]:seconds:' ;;
    tail) _arguments $common '(-n --count)'{-n,--count}'[begin with the last]:number:' '--since[begin there]:time:' '--no-follow[end with the last]' '*:topic:' ;;
    replay) _arguments $common '--since[from then on]:time:' '--until[up to then]:time:' '*--topic[only this topic]:topic:' '--into[template of the streams]:stream:' \
        '--rate[events per second]:number:' '--no-wait[leave it alone]' '--list[what replays there are]' '--cancel[end one]:id:' '--follow[how far one is]:id:' ;;
    verify) _arguments $common '--since[from then on]:time:' '--until[up to then]:time:' ;;
    'dlq ls') _arguments $common $where '--limit[at most]:number:' ;;
    'dlq show') _arguments $common $where '1:id:' ;;
    'dlq redrive') _arguments $common $where '--type[event types]:pattern:' '--all[all]' '--of-sink[those of the sink]' '*:id:' ;;
    'dlq discard') _arguments $common $where '--type[event types]:pattern:' '--all[all]' '--of-sink[those of the sink]' '(-y --yes)'{-y,--yes}'[without asking]' '*:id:' ;;
    *) _arguments $common '*:word:' ;;
    esac
}
_outboxctl "$@"
