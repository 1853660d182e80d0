# A process that waits for the streams' next entries in XREAD BLOCK, notes the time when they come, and hands them on through
# a pipe. It goes on after the last IDs that it has, whatever happens to Redis: so it must see each entry once, in order.
package Demo::Reader;

use strict;
use warnings;
use IO::Select;
use POSIX ();
use Redis;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC sleep);

use constant PAGE => 500;

sub new {
    my ($class, $socket, @streams) = @_;
    pipe my $pipe, my $writer or die "pipe: $!\n";
    my $pid = fork // die "fork: $!\n";
    if ($pid == 0) {
        close $pipe;
        $SIG{INT} = 'IGNORE';
        $SIG{TERM} = $SIG{HUP} = 'DEFAULT';
        $writer->autoflush(1);
        follow($socket, $writer, map { [ $_, '0-0' ] } @streams);
        POSIX::_exit(0);
    }
    close $writer;
    $pipe->blocking(0);
    return bless { pid => $pid, pipe => $pipe, select => IO::Select->new($pipe), rest => '', entries => [] }, $class;
}

# streams: [name, last ID]
sub follow {
    my ($socket, $writer, @streams) = @_;
    my $parent = getppid;
    while (getppid == $parent) {
        eval {
            my $redis = Redis->new(sock => $socket);
            while (getppid == $parent) {
                # a second, to see whether the parent is still there
                my $reply = $redis->xread('COUNT', PAGE, 'BLOCK', 1000, 'STREAMS', (map { $_->[0] } @streams),
                    map { $_->[1] } @streams);
                my $now = clock_gettime(CLOCK_MONOTONIC);
                print $writer hand_on($now, $reply, @streams) if $reply;
            }
        };
        # Redis is gone
        sleep 0.02;
    }
    return;
}

# A full page may have left something behind that comes before the entries of another stream: these are read again then.
sub hand_on {
    my ($now, $reply, @streams) = @_;
    my ($limit) = sort { above($a, $b) } map { $_->[1][-1][0] } grep { @{ $_->[1] } == PAGE } @$reply;
    my $lines = '';
    for my $page (@$reply) {
        my ($stream) = grep { $_->[0] eq $page->[0] } @streams;
        for my $entry (@{ $page->[1] }) {
            my ($id, $fields) = @$entry;
            last if $limit && above($id, $limit) > 0;
            $stream->[1] = $id;
            $lines .= join(' ', $now, $id, facts($fields)) . "\n";
        }
    }
    return $lines;
}

# event_id, event_type, wallet, n and amount of an entry; "?" what it does not have
sub facts {
    my ($fields) = @_;
    my %field = @$fields;
    my $payload = $field{payload} // '';
    my ($n) = $payload =~ /"n" : (\d+)/;
    my ($amount) = $payload =~ /"amount" : (-?\d+)/;
    return map { $_ // '?' } @field{qw(event_id event_type aggregate_id)}, $n, $amount;
}

# What has come, waiting until that time (CLOCK_MONOTONIC) if there is nothing. Kept in $self->{entries}, too.
sub next_entries {
    my ($self, $until) = @_;
    my $left = $until - clock_gettime(CLOCK_MONOTONIC);
    return unless $self->{select}->can_read($left > 0 ? $left : 0);
    my $got;
    while ($got = sysread $self->{pipe}, my $text, 65536) { $self->{rest} .= $text }
    die "the reader has ended\n" if defined $got;
    my @entries;
    while ($self->{rest} =~ /\G(.*)\n/gc) {
        my %entry;
        @entry{qw(at id event_id type wallet n amount)} = split / /, $1;
        push @entries, \%entry;
    }
    $self->{rest} = substr $self->{rest}, pos($self->{rest}) // 0;
    push @{ $self->{entries} }, @entries;
    return @entries;
}

# <=> of two entry IDs
sub above {
    my ($ms, $n) = split /-/, $_[0];
    my ($other_ms, $other_n) = split /-/, $_[1];
    return $ms <=> $other_ms || $n <=> $other_n;
}

sub end {
    my ($self) = @_;
    my $pid = delete $self->{pid} or return;
    kill 'KILL', $pid;
    waitpid $pid, 0;
    return;
}

1;
