# A process for each stream that waits in XREAD BLOCK, notes the time when an entry comes, and hands it on through a pipe.
# It goes on after the last ID that it has, whatever happens to Redis: so it must see each entry once, in order.
package Demo::Readers;

use strict;
use warnings;
use IO::Select;
use POSIX ();
use Redis;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC sleep);

sub new {
    my ($class, $socket, @streams) = @_;
    my $self = bless { select => IO::Select->new, pids => [], rest => {}, entries => [] }, $class;
    for my $stream (@streams) {
        pipe my $reader, my $writer or die "pipe: $!";
        my $pid = fork // die "fork: $!";
        if ($pid == 0) {
            close $reader;
            eval { follow($socket, $stream, $writer) };
            POSIX::_exit(0);
        }
        close $writer;
        $reader->blocking(0);
        $self->{select}->add($reader);
        $self->{rest}{$reader} = '';
        push @{ $self->{pids} }, $pid;
    }
    return $self;
}

sub follow {
    my ($socket, $stream, $writer) = @_;
    local $SIG{INT} = 'IGNORE';
    local $SIG{TERM} = 'DEFAULT';
    my $parent = getppid;
    my $last = '0-0';
    $writer->autoflush(1);
    while (getppid == $parent) {
        eval {
            my $redis = Redis->new(sock => $socket, encoding => undef);
            while (getppid == $parent) {
                # a second, to see whether the parent is still there
                my $reply = $redis->xread('COUNT', 500, 'BLOCK', 1000, 'STREAMS', $stream, $last) or next;
                my $now = clock_gettime(CLOCK_MONOTONIC);
                my $lines = '';
                for my $entry (@{ $reply->[0][1] }) {
                    ($last, my $fields) = @$entry;
                    $lines .= join(' ', $now, $last, facts($fields)) . "\n";
                }
                print $writer $lines;
            }
        };
        # Redis is gone
        sleep 0.02;
    }
    return;
}

# event_id, event_type, wallet, n and amount of an entry
sub facts {
    my ($fields) = @_;
    my %field = @$fields;
    my ($n) = $field{payload} =~ /"n" : (\d+)/;
    my ($amount) = $field{payload} =~ /"amount" : (-?\d+)/;
    return (@field{qw(event_id event_type aggregate_id)}, $n, $amount);
}

# What has come, waiting until that time (CLOCK_MONOTONIC) if there is nothing, and as many seconds more if there is
# something. By position; kept in $self->{entries}, too.
sub next_entries {
    my ($self, $until, $gather) = @_;
    my $left = $until - clock_gettime(CLOCK_MONOTONIC);
    my @entries;
    sleep $gather if $self->{select}->can_read($left > 0 ? $left : 0) && $gather;
    for my $reader ($self->{select}->can_read(0)) {
        if (!sysread $reader, my $text, 65536) {
            die "a reader has ended\n" if !$!{EAGAIN};
        } else {
            $self->{rest}{$reader} .= $text;
        }
        while ($self->{rest}{$reader} =~ s/^(.*)\n//) {
            my %entry;
            @entry{qw(at id event_id type wallet n amount)} = split / /, $1;
            push @entries, \%entry;
        }
    }
    @entries = sort { above($a->{id}, $b->{id}) } @entries;
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
    my @pids = splice @{ $self->{pids} };
    kill 'KILL', @pids;
    waitpid $_, 0 for @pids;
    return;
}

1;
