# Completion of outboxctl for bash.
_outboxctl() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} word command='' options
    COMPREPLY=()
    case $previous in
    --redis-password-file)
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    -d | --dbname | --redis | --sink | --interval | -n | --count | --since | --until | --topic | --group | --limit | --type | --into | --rate | --cancel | --follow) return ;;
    esac
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $command/$word in
        /status | /tail | /show | /groups | /replay | /verify | /doctor | /dlq) command=$word ;;
        dlq/ls | dlq/show | dlq/redrive | dlq/discard) command="dlq $word" ;;
        esac
    done
    options='-h --help -d --dbname --redis --redis-password-file --sink --json'
    case $command in
    '') options='status tail show groups dlq replay verify doctor -h --help --version' ;;
    dlq) options='ls show redrive discard -h --help' ;;
    status) options+=' -w --watch --interval' ;;
    tail) options+=' -n --count --since --no-follow' ;;
    replay) options+=' --since --until --topic --into --rate --no-wait --list --cancel --follow' ;;
    verify) options+=' --since --until' ;;
    'dlq ls') options+=' --topic --group --limit' ;;
    'dlq show') options+=' --topic --group' ;;
    'dlq redrive') options+=' --topic --group --type --all --of-sink' ;;
    'dlq discard') options+=' --topic --group --type --all --of-sink -y --yes' ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
}
complete -F _outboxctl outboxctl
