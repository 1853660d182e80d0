# One round: fresh servers from the template, two consumer groups of two processes, a load of known outcome, one fault in the
# middle of it; then all comes to rest, and the checker gets what everybody has written down. Whatever is random here comes
# from the round's seed. Runs in a process of its own, in a folder of its own, in which everything that it starts lives.
package Faults::Round;

use strict;
use warnings;
use IO::Socket::INET;
use JSON::PP ();
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep);

use Faults::Checker;
use Faults::Postgres;
use Faults::Tap;
use Faults::Wait qw(wait_until pause_until now_ns);
use OutboxTest::Proxy;
use OutboxTest::Redis;

my %mode = (inbox => 'inbox', redis => 'redis');    # the groups, and how each keeps its events apart

use constant {
    LOAD => 2.0,        # seconds of load, if the fault needs no more
    TAIL => 0.4,        # and so much of it after the fault
    SETTLE => 25,       # until everything has come to rest
    ENOUGH => 200,      # events for a round to say anything
};

# dir, programs (folder of workload and service), bindir, template, topics, fault, seed
sub new {
    my ($class, %options) = @_;
    my $self = bless { %options, began => now_ns(), wrong => [], deaths => {}, services => [], expected => {}, foreign => {},
        fault_state => {}, bursts => 0, notes => [] }, $class;
    $self->{keys} = [ map { "outbox:{$_}" } @{ $options{topics} } ];
    srand $options{seed};
    # the moment of the fault, in seconds of load: first, so that it is the same whatever the fault draws
    $self->{at} = 0.4 + rand 1.2;
    return $self;
}

# what happened and when, for who reads the evidence of a round that failed
sub note {
    my ($self, $text) = @_;
    my $line = sprintf "%.3f %s\n", (now_ns() - $self->{began}) / 1e9, $text;
    open my $file, '>>', "$self->{dir}/notes" or return;
    print $file $line;
    return;
}

sub run {
    my ($self) = @_;
    $self->set_up;
    $self->note('load begins');
    my $begin = now_ns();
    $self->start_workload;
    pause_until($begin + 1e9 * $self->{at});
    $self->{fault}{inject}->($self);
    $self->end unless defined $self->{fault_state}{end};
    $self->go_on($begin);
    $self->stop_workload;
    $self->settle;
    my $verdict = $self->collect;
    $self->stop;
    return $verdict;
}

# setting up

sub set_up {
    my ($self) = @_;
    my ($dir, $fault) = @$self{qw(dir fault)};
    system('cp', '-a', '--reflink=auto', $self->{template}, "$dir/data") == 0 or die "could not copy the template\n";
    my $shim = $fault->{shim} // '';
    if ($shim) {
        open my $control, '>', $self->shim_file or die "shim: $!\n";
        print $control pack 'q<6', (0) x 6;
    }
    my @redis = (aof => $fault->{aof} // 'no', timeout => 10, conf => [ 'busy-reply-threshold 100', 'repl-diskless-sync-delay 0' ]);
    {
        local %ENV = (%ENV, $shim eq 'redis' ? $self->shim_environment : ());
        $self->{redis} = OutboxTest::Redis->new(dir => $dir, @redis, port => $fault->{replica} ? free_port() : 0);
    }
    if ($fault->{replica}) {
        # everybody comes through a link, that leads from one server to the other in an instant
        mkdir "$dir/replica";
        $self->{replica} = OutboxTest::Redis->new(dir => "$dir/replica", @redis, port => free_port());
        $self->{replica}->cmd('REPLICAOF', '127.0.0.1', $self->{redis}->port);
        rename $self->{redis}->socket, "$dir/primary.sock";
        symlink "$dir/primary.sock", $self->{redis}->socket or die "link: $!\n";
        wait_until(sub { $self->{replica}->cmd('INFO', 'replication') =~ /master_link_status:up/ }, 10, 'the replica is there');
    }
    $self->{proxy} = OutboxTest::Proxy->new(to => $self->{redis}, dir => $dir) if $fault->{proxy};
    my $url = $self->{proxy} ? $self->{proxy}->url : $self->{redis}->url;
    $self->{postgres} = Faults::Postgres->new(dir => $dir, bindir => $self->{bindir},
        environment => { $shim eq 'postgres' ? $self->shim_environment : () },
        conf => "outbox.redis_url = '$url'\n" . ($fault->{postgres_conf} // ''));
    $self->{postgres}->start;
    $self->{tap} = Faults::Tap->start(keys => $self->{keys}, socket => $self->{redis}->socket, file => "$dir/tap");
    for my $group (sort keys %mode) { $self->start_service($group) for 1 .. 2 }
    return;
}

# A process of ours, with its standard error in a log; its pid.
sub spawn {
    my ($self, $log, $environment, @command) = @_;
    my $pid = fork // die "fork: $!\n";
    if ($pid == 0) {
        chdir $self->{dir};
        %ENV = (%ENV, %$environment);
        open STDIN, '<', '/dev/null';
        open STDERR, '>>', "$self->{dir}/$log.log" or POSIX::_exit(1);
        open STDOUT, '>&', \*STDERR;
        exec @command or POSIX::_exit(127);
    }
    return $pid;
}

sub start_service {
    my ($self, $group) = @_;
    my $url = $self->{redis}->url;
    my $shim = ($self->{fault}{shim} // '') eq 'consumers';
    my $pid = $self->spawn("service.$group",
        { OUTBOX_CRASH_POINT_FILE => $self->client_point_file, $shim ? $self->shim_environment : () },
        "$self->{programs}/service", '--redis', $url, '--group', $group, '--mode', $mode{$group},
        '--conninfo', $self->{postgres}->conninfo, '--journal', "$self->{dir}/journal.$group",
        '--topics', join(',', @{ $self->{topics} }));
    push @{ $self->{services} }, { pid => $pid, group => $group };
    return $pid;
}

sub client_point_file { my ($self) = @_; return "$self->{dir}/client.crash_point" }
sub server_point_file { my ($self) = @_; return "$self->{postgres}{data}/outbox.crash_point" }

sub start_workload {
    my ($self) = @_;
    my $fault = $self->{fault};
    $self->{workload} = $self->spawn('workload', {}, "$self->{programs}/workload", '--conninfo', $self->{postgres}->conninfo,
        '--seed', $self->{seed}, '--seconds', 40, '--connections', 8, '--aggregates', 50, '--history', "$self->{dir}/history",
        '--rate', $fault->{rate} // 250, @{ $fault->{workload} // [] });
    return;
}

# what a fault does with it

# The fault begins now, and has ended now. What it hit is in flight at the first, and recovers from the second on.
sub begin { my ($self, $what) = @_; $self->{fault_state}{begin} //= now_ns(); $self->note("fault: $what"); return }
sub end { my ($self) = @_; $self->{fault_state}{end} = now_ns(); $self->note('the fault is over'); return }
sub hit { my ($self, $hit) = @_; $self->{fault_state}{hit} ||= $hit ? 1 : 0; return }
sub blame { my ($self, $finding) = @_; push @{ $self->{wrong} }, $finding; $self->note($finding); return }

# Looks after the services, which the fault may have killed, for that long.
sub pass {
    my ($self, $seconds) = @_;
    my $until = now_ns() + 1e9 * $seconds;
    while (1) {
        $self->tend;
        my $left = $until - now_ns();
        last if $left <= 0;
        sleep($left < 2e7 ? $left / 1e9 : 0.02);
    }
    return;
}

# Until the condition is true, or not in time: whether it was.
sub await {
    my ($self, $condition, $seconds) = @_;
    return eval { wait_until(sub { $self->tend; return $condition->() }, $seconds, 'it is so'); 1 } // 0;
}

# A service that died is started again, as whoever runs one would have it. One that nobody killed is a finding.
sub tend {
    my ($self) = @_;
    for my $service (@{ $self->{services} }) {
        next if waitpid($service->{pid}, WNOHANG) != $service->{pid};
        my $status = $?;
        my $died = now_ns();
        $self->{deaths}{ $service->{pid} } //= $died;
        $service->{gone} = 1;
        $self->note("a consumer of group $service->{group} ($service->{pid}) is gone: status $status");
        # killed, or at the end of what it was told
        next if $status == 9 || ($service->{told} && $status == 0);
        $self->blame("died: a consumer of group $service->{group} ended with status $status");
    }
    my @gone = grep { $_->{gone} } @{ $self->{services} };
    return unless @gone;
    die "consumers die again and again\n" if ($self->{restarts} += @gone) > 20;
    $self->{services} = [ grep { !$_->{gone} } @{ $self->{services} } ];
    $self->start_service($_->{group}) for @gone;
    return;
}

sub groups { return sort keys %mode }
sub services { my ($self, $group) = @_; return grep { !defined $group || $_->{group} eq $group } @{ $self->{services} } }

# Events of one transaction, so that many are on their way when it returns; the first versions of aggregates of their own. Asked
# for once: whether it was committed is not known when the server dies meanwhile. async: acknowledged before it is durable.
sub burst {
    my ($self, $many, %options) = @_;
    my $connection = $self->{postgres}->connection // return;
    my $n = ++$self->{bursts};
    my $op = sprintf '%08x-0000-4000-8000-%012x', $self->{seed} & 0xffffffff, $n;
    my $topic = $self->{topics}[ int rand @{ $self->{topics} } ];
    $self->write_history($op, 'invoke', $options{async} ? 'async' : 'commit', $many);
    my $done = eval {
        $connection->do('SET synchronous_commit = ' . ($options{async} ? 'off' : 'on'));
        $connection->do('SELECT torture.burst($1, $2, $3, $4)', undef, $op, "burst$n", $topic, $many);
        1;
    };
    $self->write_history($op, $done ? 'ok' : 'info');
    return;
}

# A burst, and then until a part of it has arrived, any part between nothing and all: in the middle of the worker's work.
sub flow {
    my ($self, $many, %options) = @_;
    my $part = rand 1.2;
    my $before = $self->entries;
    $self->burst($many, %options);
    my $until = now_ns() + 3e8;
    my $arrived = 0;
    $arrived = $self->entries - $before while $arrived < ($part - 0.2) * $many && now_ns() < $until;
    $self->note("$arrived entries after a burst of $many");
    return;
}

# A burst, prepared; what is returned commits it.
sub prepare {
    my ($self, $many) = @_;
    my $op = sprintf '%08x-0000-4000-8000-%012x', $self->{seed} & 0xffffffff, ++$self->{bursts};
    $self->write_history($op, 'invoke', 'prepared', $many);
    my $connection = $self->{postgres}->connect // die "could not connect\n";
    $connection->do('BEGIN');
    $connection->do('SELECT torture.burst($1, $2, $3, $4)', undef, $op, "burst$self->{bursts}", $self->{topics}[0], $many);
    $connection->do("PREPARE TRANSACTION 'round'");
    $connection->disconnect;
    return sub {
        $self->{postgres}->rows("COMMIT PREPARED 'round'");
        $self->write_history($op, 'ok');
    };
}

sub write_history {
    my ($self, $op, $do, $kind, $events) = @_;
    my $line = sprintf '{"t":%d,"op":"%s","do":"%s"%s}' . "\n", now_ns(), $op, $do,
        $kind ? ",\"kind\":\"$kind\",\"events\":$events" : '';
    open my $file, '>>', "$self->{dir}/history.bursts" or die "history.bursts: $!\n";
    print $file $line;
    close $file;
    return;
}

# A reply on a connection of its own: the other one may wait for a Redis that is stopped.
sub redis_cmd { my ($self, @words) = @_; return $self->{redis}->cmd(@words) }

# For that long, in which emitting goes on as if nothing were: nobody waits for Redis.
sub emits_meanwhile {
    my ($self, $seconds) = @_;
    my $file = "$self->{dir}/history";
    my $committed = sub { open my $history, '<', $file or return 0; return scalar grep { /"do":"ok"/ } readline $history };
    my $before = $committed->();
    $self->pass($seconds);
    $self->blame(sprintf 'hostage: nothing was committed for %.1f s', $seconds) if $seconds > 0.3 && $committed->() == $before;
    return;
}

# Makes a process die at a named place; whoever reads the file reads all of it.
sub arm {
    my ($self, $file, $name, $nth) = @_;
    open my $out, '>', "$file.new" or die "$file: $!\n";
    print $out "$name $nth\n";
    close $out;
    rename "$file.new", $file or die "$file: $!\n";
    $self->note("$name is armed, for who is the $nth to come by");
    return;
}

sub disconnect_worker {
    my ($self) = @_;
    for my $client (split /\n/, $self->{redis}->cmd('CLIENT', 'LIST')) {
        my ($id, $name) = $client =~ /^id=(\d+) .* name=(\S*)/ or next;
        $self->{redis}->cmd('CLIENT', 'KILL', 'ID', $id) if $name =~ /^outbox/;
    }
    return;
}

# The last entries of each stream once more: now ("*"), or ahead of what the worker has yet to append. How many.
sub copy_entries {
    my ($self, $many, $where) = @_;
    my $copies = 0;
    for my $key (@{ $self->{keys} }) {
        for my $entry (@{ $self->{redis}->cmd('XREVRANGE', $key, '+', '-', 'COUNT', $many) }) {
            my ($last) = $entry->[0] =~ /^(\d+)/;
            my $at = $where eq 'ahead' ? ($last + 700) . '-0' : $where;
            my $id = eval { $self->{redis}->cmd('XADD', $key, $at, @{ $entry->[1] }) } // next;
            $self->{foreign}{"$key $id"} = 1;
            $copies++;
        }
    }
    return $copies;
}

# An entry that is no event: each group puts it aside, once.
sub add_malformed {
    my ($self) = @_;
    my $key = $self->{keys}[ rand @{ $self->{keys} } ];
    my $id = $self->{redis}->cmd('XADD', $key, '*', 'temperature', int rand 40);
    $self->{foreign}{"$key $id"} = 1;
    $self->{malformed}{$key}++;
    return;
}

# The load pauses, so that the worker has nothing to do.
sub quiet {
    my ($self, $seconds) = @_;
    kill 'STOP', $self->{workload};
    $self->pass($seconds);
    kill 'CONT', $self->{workload};
    return;
}

# What is preloaded where the fault says so: its clock (seconds off), the disk (errors of fsync to come, microseconds that each
# takes, whether it is full).
sub shim_file { my ($self) = @_; return "$self->{dir}/shim.control" }
sub shim_environment { my ($self) = @_; return (LD_PRELOAD => $self->{shim}, OUTBOX_SHIM => $self->shim_file) }

sub set_shim {
    my ($self, %to) = @_;
    my %place = (clock => 0, sync_errors => 1, sync_delay => 2, full => 3);
    open my $control, '+<', $self->shim_file or die "shim: $!\n";
    for my $name (keys %to) {
        sysseek $control, 8 * $place{$name}, 0;
        syswrite $control, pack 'q<', $to{$name};
    }
    return;
}

# how many calls it has made to fail, and to wait
sub shim_met {
    my ($self) = @_;
    open my $control, '<', $self->shim_file or die "shim: $!\n";
    sysseek $control, 32, 0;
    sysread $control, my $bytes, 16;
    my ($failed, $delayed) = unpack 'q<2', $bytes;
    return $failed + $delayed;
}

sub free_port {
    my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) or die "no port: $!\n";
    return $socket->sockport;
}

# The replica is the one from now on; what the other had not told it is lost.
sub fail_over {
    my ($self) = @_;
    my ($old, $new) = @$self{qw(redis replica)};
    my $front = $old->socket;
    symlink $new->socket, "$front.new" or die "link: $!\n";
    rename "$front.new", $front or die "link: $!\n";
    $old->kill9;
    # which takes its socket away, and so the link
    symlink $new->socket, $front unless -l $front;
    $new->{socket} = $front;
    @$self{qw(redis replica)} = ($new, undef);
    return;
}

# A stream is something else for a while.
sub spoil_stream {
    my ($self, $seconds) = @_;
    my $key = $self->{keys}[0];
    my $redis = $self->{redis};
    $redis->cmds([ 'MULTI' ], [ 'RENAME', $key, "$key:away" ], [ 'SET', $key, 'no stream' ], [ 'EXEC' ]);
    $self->burst(50);
    $self->pass($seconds);
    $redis->cmds([ 'MULTI' ], [ 'RENAME', "$key:away", $key ], [ 'EXEC' ]);
    return;
}

# how many entries of its own a consumer had not acknowledged, of all streams
sub pending_of {
    my ($self, $pid, $group) = @_;
    my $pending = 0;
    for my $key (@{ $self->{keys} }) {
        my $consumers = eval { $self->{redis}->cmd('XINFO', 'CONSUMERS', $key, $group) } // [];
        for my $consumer (@$consumers) {
            my %consumer = @$consumer;
            $pending += $consumer{pending} if $consumer{name} =~ /(^|\D)$pid(\D|$)/;
        }
    }
    return $pending;
}

# coming to rest

# how many there are in all streams
sub entries {
    my ($self) = @_;
    my $n = 0;
    eval { $n += $_ for $self->{redis}->cmds(map { [ 'XLEN', $_ ] } @{ $self->{keys} }) };
    return $n;
}

# The load goes on for a while after the fault, until what is emitted then arrives.
sub go_on {
    my ($self, $begin) = @_;
    my $end = $self->{fault_state}{end};
    my $until = $begin + 1e9 * ($self->{fault}{load} // LOAD);
    $until = $end + 1e9 * TAIL if $until < $end + 1e9 * TAIL;
    $self->pass(0.1);
    my $before = $self->entries;
    $self->await(sub { $self->entries > $before }, ($self->{fault}{limit} // 10) + 1) or $self->note('nothing arrives after the fault');
    $self->pass(($until - now_ns()) / 1e9);
    return;
}

sub stop_workload {
    my ($self) = @_;
    my $pid = delete $self->{workload};
    kill 'TERM', $pid;
    my $status;
    my $ended = $self->await(sub { waitpid($pid, WNOHANG) == $pid && (($status) = $?, 1)[1] }, 12);
    if (!$ended) {
        kill 'KILL', $pid;
        waitpid $pid, 0;
        die "the workload did not end\n";
    }
    die "the workload ended with status $status\n" if $status;
    $self->note('load has ended');
    # should it have left any: either end is right
    for my $row (@{ $self->{postgres}->rows('SELECT gid FROM pg_prepared_xacts') }) {
        $self->{postgres}->rows("COMMIT PREPARED '$row->[0]'");
        $self->note("left prepared, and committed now: $row->[0]");
    }
    return;
}

sub settle {
    my ($self) = @_;
    my $until = now_ns() + 1e9 * SETTLE;
    my $left = sub { my $left = ($until - now_ns()) / 1e9; return $left > 0 ? $left : 0 };
    $self->await(sub {
        $self->{postgres}->value("SELECT outbox.flush('0.5 s')")
            && $self->{postgres}->value('SELECT state FROM outbox.stat_sink') =~ /^(streaming|idle)$/;
    }, $left->()) or $self->blame('stuck: not everything was published within ' . SETTLE . ' s');
    $self->note('everything is published');
    $self->await(sub { !$self->unread }, $left->())
        or $self->blame('stuck: the consumers did not come to an end within ' . SETTLE . ' s: ' . $self->unread);
    $self->note('everything is handled');
    return;
}

# What the groups have not read or not acknowledged yet, in words; nothing when that is nothing.
sub unread {
    my ($self) = @_;
    my @left;
    for my $key (@{ $self->{keys} }) {
        my $stream = eval { $self->{redis}->cmd('XINFO', 'STREAM', $key) } or next;
        my %stream = @$stream;
        my %group = map { my %group = @$_; ($group{name} => \%group) } @{ $self->{redis}->cmd('XINFO', 'GROUPS', $key) };
        for my $name (sort keys %mode) {
            my $group = $group{$name};
            if (!$group) { push @left, "no group $name of $key" }
            elsif ($group->{pending}) { push @left, "$group->{pending} pending entries of $name in $key" }
            elsif (Faults::Checker::above($group->{'last-delivered-id'}, $stream{'last-generated-id'}) < 0 && $stream{length}) {
                push @left, "$name is at $group->{'last-delivered-id'} of $stream{'last-generated-id'} in $key";
            }
        }
    }
    return join ', ', @left;
}

sub collect {
    my ($self) = @_;
    my ($dir, $postgres, $redis) = @$self{qw(dir postgres redis)};
    my $tapped = (delete $self->{tap})->stop;
    $self->blame("died: the tap ended with status $tapped") if $tapped;
    my $sink = $postgres->row('SELECT * FROM outbox.stat_sink');
    my %state = map { $_ => $sink->{$_} } qw(state lag_events dead_letters held_streams);
    $state{unpublished} = $postgres->value("SELECT count(*) FROM outbox.event WHERE status <> 'published'");
    for my $key (@{ $self->{keys} }) {
        for my $name (sort keys %mode) {
            # as many as it was made to have
            $state{dlq}{"$key:dlq:$name"} = $redis->cmd('XLEN', "$key:dlq:$name") - ($self->{malformed}{$key} // 0);
            my $pending = eval { $redis->cmd('XPENDING', $key, $name) };
            $state{pending}{"$name in $key"} = $pending ? $pending->[0] : 0;
        }
    }
    my @entries = map { my $key = $_; grep { !$self->{foreign}{"$key $_->{id}"} } map { Faults::Tap::facts($key, @$_) } raw_entries($redis, $key) }
        @{ $self->{keys} };
    my @tap = grep { !$self->{foreign}{"$_->{key} $_->{id}"} } @{ Faults::Tap::read_file("$dir/tap") };
    my $journals = { map { $_ => read_journal("$dir/journal.$_") } keys %mode };
    my $verdict = Faults::Checker::check(
        history => [ map { read_json_lines($_) } grep { -e } "$dir/history", "$dir/history.bursts" ],
        truth => [ map { my %row; @row{qw(op event_id aggregate version digest)} = @$_; \%row }
            @{ $postgres->rows('SELECT op, event_id, aggregate, version, digest FROM torture.truth') } ],
        entries => \@entries,
        tap => \@tap,
        inboxes => [ grep { $mode{$_} eq 'inbox' } keys %mode ],
        effects => [ map { { event_id => $_->[0], consumer => $_->[1] } } @{ $postgres->rows('SELECT event_id, consumer FROM torture.effect') } ],
        journals => $journals,
        deaths => $self->{deaths},
        state => \%state,
        wrong => $self->{wrong},
        fault => { enough => ENOUGH, %{ $self->{fault} }, %{ $self->{fault_state} } });
    # what had to be done twice shows that the fault met something
    $verdict->{sent_again} = ($sink->{duplicates_rejected} // 0) + ($sink->{healed} // 0);
    $verdict->{taken_over} = taken_over($journals);
    $verdict->{seconds} = sprintf '%.1f', (now_ns() - $self->{began}) / 1e9;
    return $verdict;
}

# events that one process had begun and another one began again
sub taken_over {
    my ($journals) = @_;
    my $n = 0;
    for my $journal (values %$journals) {
        my %pids;
        $pids{ $_->{event_id} }{ $_->{pid} } = 1 for grep { $_->{what} eq 'start' } @$journal;
        $n += grep { keys %$_ > 1 } values %pids;
    }
    return $n;
}

sub raw_entries {
    my ($redis, $key) = @_;
    my ($from, @entries) = ('-');
    while (1) {
        my $page = $redis->cmd('XRANGE', $key, $from, '+', 'COUNT', 1000);
        push @entries, @$page;
        return @entries if @$page < 1000;
        $from = "($page->[-1][0]";
    }
}

sub read_json_lines {
    my ($path) = @_;
    open my $file, '<', $path or die "$path: $!\n";
    return map { JSON::PP::decode_json($_) } grep { /\}$/ } readline $file;
}

sub read_journal {
    my ($path) = @_;
    open my $file, '<', $path or return [];
    my @lines;
    while (my $line = readline $file) {
        my %line;
        @line{qw(ns what event_id aggregate version pid attempt)} = split ' ', $line;
        push @lines, \%line if defined $line{attempt};
    }
    return \@lines;
}

# Ends all that the round has started, by the pids that it knows; whoever started the round looks for what else is left.
sub stop {
    my ($self) = @_;
    for my $pid (grep { defined } $self->{workload}, $self->{tap} && $self->{tap}{pid}, map { $_->{pid} } @{ $self->{services} }) {
        kill 'KILL', $pid;
        waitpid $pid, 0;
    }
    $self->{services} = [];
    $self->{postgres}->stop_immediately if $self->{postgres} && $self->{postgres}{pid};
    if ($self->{redis} && $self->{redis}->pid) {
        $self->{redis}->sigcont;
        $self->{redis}->kill9;
    }
    $self->{replica}->kill9 if $self->{replica};
    $self->{proxy}->stop if $self->{proxy};
    return;
}

1;
