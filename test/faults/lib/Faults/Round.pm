# One round: fresh servers from the template, two consumer groups of two processes, a load of known outcome, one fault in the
# middle of it; then all comes to rest, and the checker gets what everybody has written down. Whatever is random here comes
# from the round's seed. Runs in a process of its own, in a folder of its own, in which everything that it starts lives.
package Faults::Round;

use strict;
use warnings;
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep);

use parent 'Faults::Hand';

use Faults::Checker;
use Faults::Evidence;
use Faults::Postgres;
use Faults::Tap;
use Faults::Wait qw(wait_until pause_until now_ns);
use OutboxTest::Proxy;
use OutboxTest::Redis;

my %mode = (inbox => 'inbox', redis => 'redis');    # the groups, and how each keeps its events apart

use constant {
    LOAD => 2.0,        # seconds of load, if the fault needs no more
    TAIL => 0.4,        # and so much of it after the fault
    ENOUGH => 200,      # events for a round to say anything
    # These are there to tell what hangs from what is slow, on a machine that does much else: a round that is well takes none of it.
    LIMIT => 25,        # until what is emitted after the fault arrives
    SETTLE => 45,       # until everything is published, and until it is handled
    PATIENCE => 45,     # for anything else
    CLAIM_IDLE => 15_000,    # ms that a consumer may be away where none is to take over from another
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
    $self->await(sub { $self->is_under_way }, PATIENCE) or die "the load does not come under way\n";
    $self->{fault}{inject}->($self);
    $self->end unless defined $self->{fault_state}{end};
    $self->go_on($begin);
    $self->stop_workload;
    $self->settle;
    my $verdict = Faults::Evidence::judge($self, ENOUGH, LIMIT);
    $verdict->{seconds} = sprintf '%.1f', (now_ns() - $self->{began}) / 1e9;
    # what does not end by itself is ended
    eval { $self->stop; 1 } or $self->note("to stop: $@");
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
    my @redis = (aof => $fault->{aof} // 'no', timeout => PATIENCE,
        conf => [ 'busy-reply-threshold 100', 'repl-diskless-sync-delay 0' ]);
    {
        local %ENV = (%ENV, $shim eq 'redis' ? $self->shim_environment : ());
        $self->{redis} = start_redis(dir => $dir, @redis, port => $fault->{replica});
    }
    if ($fault->{replica}) {
        # everybody comes through a link, that leads from one server to the other in an instant
        mkdir "$dir/replica";
        $self->{replica} = start_redis(dir => "$dir/replica", @redis, port => 1);
        $self->{replica}->cmd('REPLICAOF', '127.0.0.1', $self->{redis}->port);
        rename $self->{redis}->socket, "$dir/primary.sock";
        symlink "$dir/primary.sock", $self->{redis}->socket or die "link: $!\n";
        wait_until(sub { $self->{replica}->cmd('INFO', 'replication') =~ /master_link_status:up/ }, PATIENCE,
            'the replica is there');
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

# port => whether it has one: somebody else may take the one that is free before it does.
sub start_redis {
    my (%options) = @_;
    for my $try (1 .. 5) {
        my $server = eval { OutboxTest::Redis->new(%options, port => $options{port} ? Faults::Hand::free_port() : 0) };
        return $server if $server;
        die $@ if $try == 5 || !$options{port};
    }
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
    my $fault = $self->{fault};
    my $shim = ($fault->{shim} // '') eq 'consumers';
    # where nothing may be handled again, nobody may take what is only late for what is left behind
    my $claim_idle = $fault->{claim_idle} // ($fault->{allowed}{handled_again} ? 1000 : CLAIM_IDLE);
    my $pid = $self->spawn("service.$group",
        { OUTBOX_CRASH_POINT_FILE => $self->client_point_file, $shim ? $self->shim_environment : () },
        "$self->{programs}/service", '--redis', $url, '--group', $group, '--mode', $mode{$group},
        '--conninfo', $self->{postgres}->conninfo, '--journal', "$self->{dir}/journal.$group",
        '--topics', join(',', @{ $self->{topics} }), '--claim-idle', $claim_idle);
    push @{ $self->{services} }, { pid => $pid, group => $group, alive => now_ns() };
    return $pid;
}

sub client_point_file { my ($self) = @_; return "$self->{dir}/client.crash_point" }
sub server_point_file { my ($self) = @_; return "$self->{postgres}{data}/outbox.crash_point" }

sub start_workload {
    my ($self) = @_;
    my $fault = $self->{fault};
    $self->{workload} = $self->spawn('workload', {}, "$self->{programs}/workload", '--conninfo', $self->{postgres}->conninfo,
        '--seed', $self->{seed}, '--seconds', 1000, '--connections', 8, '--aggregates', 50, '--history', "$self->{dir}/history",
        '--rate', $fault->{rate} // 250, @{ $fault->{workload} // [] });
    return;
}

# Whether there is something in every stream, and each service reads: a fault before that has nothing to hit.
sub is_under_way {
    my ($self) = @_;
    my %known;
    for my $key (@{ $self->{keys} }) {
        return 0 unless $self->{redis}->cmd('XLEN', $key);
        for my $group ($self->groups) {
            for my $consumer (@{ $self->{redis}->cmd('XINFO', 'CONSUMERS', $key, $group) }) {
                my %consumer = @$consumer;
                $known{"$group $_"} = 1 for $consumer{name} =~ /\d+/g;
            }
        }
    }
    return !grep { !$known{"$_->{group} $_->{pid}"} } $self->services;
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

# Until the condition is true, or not in time: whether it was. What cannot be looked at, as a server does not answer, is not so yet.
sub await {
    my ($self, $condition, $seconds) = @_;
    my $so = 0;
    my $until = now_ns() + 1e9 * $seconds;
    while (!$so) {
        $self->tend;
        $so = eval { $condition->() } ? 1 : 0;
        last if now_ns() > $until;
        sleep 0.01 unless $so;
    }
    return $so;
}

# A service that died is started again, as whoever runs one would have it. One that nobody killed is a finding.
sub tend {
    my ($self) = @_;
    for my $service (@{ $self->{services} }) {
        my $looked = now_ns();
        if (waitpid($service->{pid}, WNOHANG) != $service->{pid}) {
            $service->{alive} = $looked;
            next;
        }
        my $status = $?;
        $self->{deaths}{ $service->{pid} } //= [ $service->{alive}, now_ns() ];
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

# coming to rest

# how many there are in all streams
sub entries {
    my ($self) = @_;
    my $n = 0;
    eval { $n += $_ for $self->{redis}->cmds(map { [ 'XLEN', $_ ] } @{ $self->{keys} }) };
    return $n;
}

# The load goes on for a while after the fault, until what is emitted then has been committed, something arrives, and there are
# events enough, however slow the machine is.
sub go_on {
    my ($self, $begin) = @_;
    my $end = $self->{fault_state}{end};
    my $until = $begin + 1e9 * ($self->{fault}{load} // LOAD);
    $until = $end + 1e9 * TAIL if $until < $end + 1e9 * TAIL;
    $self->pass(0.1);
    my $before = $self->entries;
    $self->await(sub { $self->entries > $before }, PATIENCE) or $self->note('nothing arrives after the fault');
    my $committed = $self->committed_since($end);
    $self->await($committed, PATIENCE) or $self->note('nothing is committed after the fault');
    $self->await(sub { $self->{postgres}->value('SELECT count(*) FROM torture.truth') >= ENOUGH }, PATIENCE);
    $self->pass(($until - now_ns()) / 1e9);
    return;
}

# Tells, whenever it is asked, whether an operation with events that began after that has been committed.
sub committed_since {
    my ($self, $ns) = @_;
    my ($file, %begun, $found);
    my $rest = '';
    return sub {
        open $file, '<', "$self->{dir}/history" or return 0 unless $file;
        seek $file, 0, 1;    # there may be more by now
        while (!$found && defined(my $part = readline $file)) {
            $rest .= $part;
            next unless $rest =~ /\n\z/;
            my ($t, $op, $do) = $rest =~ /"t":(\d+),"op":"([^"]+)","do":"(\w+)"/;
            my ($events) = $rest =~ /"events":(\d+)/;
            $rest = '';
            next unless defined $do;
            if ($do eq 'invoke') { $begun{$op} = $events if $t >= $ns }
            elsif ($do eq 'ok') { $found = 1 if $events // $begun{$op} and exists $begun{$op} }
        }
        return $found;
    };
}

sub stop_workload {
    my ($self) = @_;
    my $pid = delete $self->{workload};
    kill 'TERM', $pid;
    my $status;
    my $ended = $self->await(sub { waitpid($pid, WNOHANG) == $pid && (($status) = $?, 1)[1] }, PATIENCE);
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
    $self->await(sub { $self->is_published }, SETTLE)
        or $self->blame('stuck: not everything was published within ' . SETTLE . ' s');
    $self->note('everything is published');
    my $left;
    $self->await(sub { !($left = $self->unread) }, SETTLE)
        or $self->blame('stuck: the consumers did not come to an end within ' . SETTLE . ' s: '
            . ($left // 'Redis does not answer'));
    $self->note('everything is handled');
    return;
}

# How the sink is, when it is well. The worker may have lost its connection once more since everything was published.
sub sink {
    my ($self) = @_;
    my $sink = {};
    $self->await(sub {
        $sink = $self->{postgres}->row('SELECT * FROM outbox.stat_sink');
        return $sink->{state} =~ /^(streaming|idle)$/ && !$sink->{lag_events};
    }, SETTLE);
    return $sink;
}

sub is_published {
    my ($self) = @_;
    return !$self->{postgres}->value('SELECT count(*) FROM outbox.delayed')
        && $self->{postgres}->value("SELECT outbox.flush('0.5 s')")
        && ($self->{postgres}->value('SELECT state FROM outbox.stat_sink') // '') =~ /^(streaming|idle)$/;
}

# What the groups have not read or not acknowledged yet, in words; nothing when that is nothing.
sub unread {
    my ($self) = @_;
    my @left;
    for my $key (@{ $self->{keys} }) {
        my $stream = eval { $self->{redis}->cmd('XINFO', 'STREAM', $key) };
        if (!$stream) {
            next if $@ =~ /no such key/;
            die $@;
        }
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
