# A proxy between the worker and Redis that breaks connections where a real network would, at a chosen byte. It is a
# process of its own, told what to do through a pipe; when the test ends, however it ends, the pipe closes and it ends too.
package OutboxTest::Proxy;

use strict;
use warnings;
use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX ();
use Socket;
use Time::HiRes qw(sleep time);

my $quiet = 0.03;    # Redis has answered all it was sent when it says nothing for so long

# to => $redis (its unix socket), or any path or 127.0.0.1:port; tcp => 1 to listen on a loopback port as well. Without a dir
# it takes one that PostgreSQL's test modules find, which only a TAP test may load.
sub new {
    my ($class, %options) = @_;
    my $to = ref $options{to} ? $options{to}->socket : $options{to};
    my $dir = $options{dir};
    if (!defined $dir || $options{tcp}) { require PostgreSQL::Test::Cluster }
    $dir //= PostgreSQL::Test::Utils::tempdir_short();
    my $self = bless { path => "$dir/proxy.sock", to => $to }, $class;
    $self->{port} = PostgreSQL::Test::Cluster::get_free_port() if $options{tcp};

    socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
    $self->{pid} = fork // die "fork: $!";
    if ($self->{pid} == 0) {
        close $ours;
        $SIG{PIPE} = 'IGNORE';
        eval { serve($self, $theirs) };
        print STDERR "proxy: $@" if $@;
        POSIX::_exit(0);    # not the END blocks of the test
    }
    close $theirs;
    $ours->autoflush(1);
    $self->{control} = $ours;
    $self->pass;
    return $self;
}

sub url { my ($self, $db) = @_; return "unix://$self->{path}?db=" . ($db // 0) }
sub tcp_url { my ($self, $db) = @_; return "redis://127.0.0.1:$self->{port}/" . ($db // 0) }

# Each of these holds from when it returns, until the next one.
sub pass { $_[0]->order('pass') }                      # as if it were not there
sub blackhole { $_[0]->order('blackhole') }            # connects, and then nothing, for open connections too
sub refuse { $_[0]->order('refuse') }                  # cuts what is open, refuses what comes
sub dribble { $_[0]->order("dribble $_[1]") }         # replies arrive in pieces of so many bytes

# Each of these happens once, to the connection that reaches the byte first, and then it passes again.
sub cut { $_[0]->order('cut') }                        # all connections, now
sub swallow { $_[0]->order("swallow $_[1]") }          # after n more bytes of replies: Redis executes, the rest of its replies is lost, cut
sub cut_request { $_[0]->order("cut_request $_[1]") }  # after n more bytes of requests: Redis gets the head of a command, cut
sub inject { $_[0]->order('inject ' . unpack 'H*', $_[1]) }    # these bytes among the replies, at the next reply

# { connections => accepted so far, cuts => connections that were cut, open => now, requested => bytes, replied => bytes }
sub stats { my ($self) = @_; return { split / /, $self->order('stats') } }

sub wait_for_cut {
    my ($self, $cuts, $timeout) = @_;
    my $until = time + ($timeout // 60);
    until ($self->stats->{cuts} >= $cuts) {
        return 0 if time > $until;
        sleep 0.01;
    }
    return 1;
}

sub order {
    my ($self, $line) = @_;
    print { $self->{control} } "$line\n";
    my $answer = readline $self->{control};
    die "the proxy has ended\n" unless defined $answer;
    chomp $answer;
    return $answer;
}

# What follows runs in the proxy's process.

sub serve {
    my ($self, $control) = @_;
    my %listener;
    my %link;    # fileno of either end => { client, server, to_client, to_server, ... }
    my ($mode, $count) = ('pass', 0);
    my %stats = map { $_ => 0 } qw(connections cuts open requested replied);

    my $listen = sub {
        return if %listener;
        unlink $self->{path};
        my @new = IO::Socket::UNIX->new(Local => $self->{path}, Listen => 50) // die "$self->{path}: $!";
        push @new, IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $self->{port}, Listen => 50, ReuseAddr => 1)
            // die "port $self->{port}: $!"
            if $self->{port};
        %listener = map { fileno($_) => $_ } @new;
    };
    my $drop = sub {
        my ($link) = @_;
        delete $link{ fileno $_ }, close $_ for grep { defined && defined fileno $_ } @$link{qw(client server)};
    };
    my $cut = sub {
        $stats{cuts}++;
        $drop->($_[0]);
    };
    my $all = sub { my %seen; return grep { !$seen{$_}++ } values %link };
    my $connect = sub {
        my $server = $self->{to} =~ m{^/}
            ? IO::Socket::UNIX->new(Peer => $self->{to})
            : IO::Socket::INET->new(PeerAddr => $self->{to}, Timeout => 5);
        $server->blocking(0) if $server;
        return $server;
    };

    while (1) {
        my ($reading, $writing) = (IO::Select->new($control, values %listener), IO::Select->new);
        my $wait;
        for my $link ($all->()) {
            next if $mode eq 'blackhole';
            # as much in flight as a socket would hold, no more
            $reading->add($link->{client}) if length $link->{to_server} < 1 << 20;
            $reading->add($link->{server}) if length $link->{to_client} < 1 << 20;
            $writing->add($link->{client}) if length $link->{to_client};
            $writing->add($link->{server}) if length $link->{to_server};
            $wait = $quiet if $link->{swallowing};
        }
        my ($readable, $writable) = IO::Select->select($reading, $writing, undef, $wait);

        # executed, and the reply is lost for good
        for my $link ($all->()) {
            $cut->($link) if $link->{swallowing} && $link->{swallowing} + $quiet <= time && !length $link->{to_server} && !length $link->{to_client};
        }

        for my $socket (@{ $readable // [] }) {
            if ($socket == $control) {
                my $line = readline $control;
                return unless defined $line;
                chomp $line;
                my ($order, $argument) = split / /, $line;
                if ($order eq 'stats') {
                    $stats{open} = () = $all->();
                    syswrite $control, join(' ', %stats) . "\n";
                    next;
                }
                if ($order eq 'cut' || $order eq 'refuse') { $cut->($_) for $all->() }
                if ($order eq 'refuse') {
                    close $_ for values %listener;
                    %listener = ();
                    unlink $self->{path};
                }
                else { $listen->() }
                ($mode, $count) = $order eq 'cut' ? ('pass', 0) : ($order, $argument // 0);
                syswrite $control, "ok\n";
                next;
            }
            next unless defined fileno $socket;
            if (my $listener = $listener{ fileno $socket }) {
                my $client = $listener->accept or next;
                $stats{connections}++;
                $client->blocking(0);
                my $link = { client => $client, server => undef, to_client => '', to_server => '' };
                $link->{server} = $connect->() or do { close $client; next };
                $link{ fileno $_ } = $link for @$link{qw(client server)};
                next;
            }
            my $link = $link{ fileno $socket } or next;
            my $got = sysread $socket, my $bytes, 65536;
            if (!$got) {
                next if !defined $got && ($!{EAGAIN} || $!{EINTR});
                # one end closed: so does the other, when it has what it is owed
                if ($socket == $link->{server} && length $link->{to_client}) {
                    $link->{client}->blocking(1);
                    syswrite $link->{client}, $link->{to_client};
                }
                # who waits for a cut has it also when the worker lost patience first
                $link->{swallowing} ? $cut->($link) : $drop->($link);
                next;
            }
            if ($socket == $link->{client}) {
                $stats{requested} += $got;
                if ($mode eq 'cut_request') {
                    if ($got >= $count) {
                        $link->{server}->blocking(1);
                        syswrite $link->{server}, $link->{to_server} . substr $bytes, 0, $count;
                        ($mode, $count) = ('pass', 0);
                        $cut->($link);
                        next;
                    }
                    $count -= $got;
                }
                $link->{to_server} .= $bytes;
                next;
            }
            $stats{replied} += $got;
            if ($link->{swallowing}) {
                $link->{swallowing} = time;
                next;
            }
            if ($mode eq 'swallow') {
                if ($got > $count) {
                    $link->{to_client} .= substr $bytes, 0, $count;
                    $link->{swallowing} = time;
                    ($mode, $count) = ('pass', 0);
                    next;
                }
                $count -= $got;
            }
            if ($mode eq 'inject') {
                $link->{to_client} .= pack 'H*', $count;
                ($mode, $count) = ('pass', 0);
            }
            $link->{to_client} .= $bytes;
        }

        for my $socket (@{ $writable // [] }) {
            next unless defined fileno $socket;
            my $link = $link{ fileno $socket } or next;
            my $queue = $socket == $link->{client} ? 'to_client' : 'to_server';
            next unless length $link->{$queue};
            my $piece = $mode eq 'dribble' && $queue eq 'to_client' ? $count : length $link->{$queue};
            my $sent = syswrite $socket, $link->{$queue}, $piece;
            if (defined $sent) { substr($link->{$queue}, 0, $sent, '') }
            elsif (!$!{EAGAIN} && !$!{EINTR}) { $drop->($link) }
        }
    }
}

sub stop {
    my ($self) = @_;
    my $control = delete $self->{control} or return;
    shutdown $control, 2;    # closing is not enough: a proxy made after this one has a copy
    waitpid $self->{pid}, 0;
    return;
}

1;
