# A reader beside everything else, from the first entry of every stream on, that writes down what it sees and when: what is gone
# at the end was seen, and what came late is known to be late. It lives through restarts of Redis; after each, and when it is
# told that data was lost, it looks at everything again and writes down what it has not yet seen at that place.
#
# A line: "ns key id event_id aggregate version digest"; the digest is sha256 of headers and payload as they are in the entry.
package Faults::Tap;

use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use POSIX ();
use Time::HiRes qw(sleep);

use Faults::Wait qw(now_ns);
use OutboxTest::Redis;

# keys => [...], socket => path, file => path
sub start {
    my ($class, %options) = @_;
    my $pid = fork // die "fork: $!\n";
    if ($pid == 0) {
        my $status = eval { watch(%options); 0 } // 1;
        print STDERR "tap: $@" if $status;
        POSIX::_exit($status);
    }
    return bless { %options, pid => $pid }, $class;
}

# everything again, from the first entries on
sub again { my ($self) = @_; kill 'USR1', $self->{pid}; return }

# It reads what is there and ends.
sub stop {
    my ($self) = @_;
    my $pid = delete $self->{pid} // return;
    kill 'TERM', $pid;
    waitpid $pid, 0;
    return $?;
}

sub watch {
    my (%options) = @_;
    my ($again, $ending, $failures) = (0, 0, 0);
    local $SIG{USR1} = sub { $again = 1 };
    local $SIG{TERM} = sub { $ending = 1 };
    my $parent = getppid;
    my @keys = @{ $options{keys} };
    my $redis = client($options{socket});
    my (%last, %seen);
    open my $file, '>>', $options{file} or die "$options{file}: $!\n";
    $file->autoflush(1);
    %last = map { $_ => '0-0' } @keys;
    while (getppid == $parent) {
        my $last_look = $ending;
        if ($again) {
            $again = 0;
            %last = map { $_ => '0-0' } @keys;
        }
        my $found = eval {
            $redis->cmd('XREAD', 'COUNT', 200, $last_look ? () : ('BLOCK', 100), 'STREAMS', @keys, @last{@keys});
        };
        if (!defined $found && $@) {
            die "Redis does not answer: $@" if $last_look && $failures++ > 20;
            # it was restarted, or will be: what it has then may be less than it had
            $again = 1;
            sleep($last_look ? 0.1 : 0.005);
            next;
        }
        return if !$found && $last_look;
        my ($ns, $lines) = (now_ns(), '');
        for my $stream (@{ $found // [] }) {
            my ($key, $entries) = @$stream;
            for my $entry (@$entries) {
                my $fact = facts($key, @$entry);
                $last{$key} = $fact->{id};
                next if ($seen{"$key $fact->{id}"} // '') eq $fact->{event_id};
                $seen{"$key $fact->{id}"} = $fact->{event_id};
                $lines .= join(' ', $ns, @$fact{qw(key id event_id aggregate version digest)}) . "\n";
            }
        }
        print $file $lines;
    }
    return;
}

# a client of its own, that does not wait for ever for a Redis that stands still
sub client { my ($socket) = @_; return bless { socket => $socket, timeout => 2 }, 'OutboxTest::Redis' }

# what a round wants to know of an entry; of one that is no event of ours as far as it goes
sub facts {
    my ($key, $id, $words) = @_;
    my %field = @$words;
    my $headers = $field{headers} // '';
    my ($aggregate) = $headers =~ /"aggregate": ?"([^"]*)"/;
    my ($version) = $headers =~ /"version": ?"?(\d+)/;
    return {
        key => $key,
        id => $id,
        event_id => $field{event_id} // 'none',
        aggregate => $aggregate // 'none',
        version => $version // 0,
        digest => sha256_hex($headers . ($field{payload} // '')),
    };
}

# what a tap has written to the file
sub read_file {
    my ($path) = @_;
    open my $file, '<', $path or return [];
    my @lines;
    while (my $line = readline $file) {
        my %line;
        @line{qw(ns key id event_id aggregate version digest)} = split ' ', $line;
        push @lines, \%line if defined $line{digest};
    }
    return \@lines;
}

1;
