# What a fault can do to a round besides killing: make and replay events, lose and add entries, stop and preload processes.
package Faults::Hand;

use strict;
use warnings;
use IO::Socket::INET;
use Time::HiRes qw(sleep);

use Faults::Evidence;
use Faults::Wait qw(now_ns);

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

# A replay of all that is there into other streams, until it is done: they must be what the streams themselves are.
sub replay {
    my ($self) = @_;
    $self->burst(400);
    my $expected = $self->entries;
    my $id = $self->{postgres}->value(q{SELECT outbox.replay(into_stream => 'copy:{%t}')});
    my $state = 'not begun';
    $self->await(sub { ($state = $self->{postgres}->value('SELECT state FROM outbox.stat_replay WHERE id = $1', $id)) eq 'done' }, 45)
        or return $self->blame("stuck: the replay is $state");
    my $copied = 0;
    for my $key (@{ $self->{keys} }) {
        my ($copy, $original) = map { [ Faults::Evidence::entries($self->{redis}, $_) ] } $key =~ s/^outbox/copy/r, $key;
        for my $entry (@$copy) {
            my ($is, $was) = map { $_ ? join ' ', @$_{qw(id event_id digest)} : 'nothing' } $entry, shift @$original;
            next if $is eq $was;
            $self->blame("replayed: $key has $was where its copy has $is");
            last;
        }
        $copied += @$copy;
    }
    $self->blame("replayed: $copied entries instead of the $expected that were there") if $copied < $expected;
    $self->note("replayed $copied entries, of which $expected were there when it began");
    return;
}

sub redis_cmd { my ($self, @words) = @_; return $self->{redis}->cmd(@words) }

# For that long, in which emitting goes on as if nothing were: nobody waits for Redis. A slow disk may need more time for a single
# commit; where somebody does wait there is none however long it takes.
sub emits_meanwhile {
    my ($self, $seconds) = @_;
    my $file = "$self->{dir}/history";
    my $committed = sub { open my $history, '<', $file or return 0; return scalar grep { /"do":"ok"/ } readline $history };
    my $before = $committed->();
    $self->pass($seconds);
    $self->blame('hostage: nothing was committed meanwhile')
        if $seconds > 0.3 && !$self->await(sub { $committed->() > $before }, 30);
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

# The load pauses, so that the worker has nothing to do, until the condition is true, or for so long.
sub quiet {
    my ($self, $condition, $seconds) = @_;
    kill 'STOP', $self->{workload};
    $self->await($condition, $seconds);
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

# A stream is something else until the condition is true, or the worker holds it.
sub spoil_stream {
    my ($self, $condition) = @_;
    my $key = $self->{keys}[0];
    my $redis = $self->{redis};
    $redis->spoil($key);
    $self->burst(50);
    $self->await(sub { $condition->() || $self->{postgres}->value('SELECT held_streams FROM outbox.stat_sink') }, 15);
    $redis->mend($key);
    return;
}

# One of the services, stopped while it has entries in hand and a handler at work, or nothing if none can be caught so.
sub catch_one {
    my ($self, $many, @services) = @_;
    for (1 .. 10) {
        $self->burst($many);
        sleep rand 0.06;
        for my $service (@services) {
            kill 'STOP', $service->{pid};
            return $service if $self->pending_of(@$service{qw(pid group)}) && $self->is_handling($service);
            kill 'CONT', $service->{pid};
        }
    }
    return;
}

# Whether a handler of that process, which stands still, has begun and not ended.
sub is_handling {
    my ($self, $service) = @_;
    open my $journal, '<', "$self->{dir}/journal.$service->{group}" or return 0;
    my %running;
    while (my $line = readline $journal) {
        my (undef, $what, $event_id, undef, undef, $pid) = split ' ', $line;
        next unless defined $pid && $pid == $service->{pid} && $what ne 'stalled';
        if ($what eq 'start') { $running{$event_id} = 1 }
        else { delete $running{$event_id} }
    }
    return scalar keys %running;
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

1;
