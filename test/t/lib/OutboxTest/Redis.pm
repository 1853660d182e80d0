# A Redis of the test's own: a real server on a unix socket and a loopback port, in a folder of its own, and a client of
# a few lines. The client is our own because the tests look at raw replies (errors inside EXEC, nil, nested arrays), and
# because a reply must never outlast its time: the server is often stopped.
package OutboxTest::Redis;

use strict;
use warnings;
use Errno ();
use File::Path qw(remove_tree);
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);

my @servers;
my $owner = $$;

# name => label; aof => no | everysec | always; conf => [ 'maxmemory 1mb', ... ] as in redis.conf, and any of it later by
# cmd('CONFIG', 'SET', ...); auth => [ user, password ] for this client; start => 0 to start it later; sentinel => 1: it is one.
# Without a dir and a port (0: none) it takes those that PostgreSQL's test modules find, which only a TAP test may load.
sub new {
    my ($class, %options) = @_;
    if (!defined $options{dir}) {
        require PostgreSQL::Test::Cluster;
        $options{dir} = PostgreSQL::Test::Utils::tempdir_short();
        $options{port} = PostgreSQL::Test::Cluster::get_free_port();
    }
    my $self = bless { name => 'redis' . @servers, aof => 'no', conf => [], timeout => 30, port => 0, %options }, $class;
    $self->{socket} = "$self->{dir}/redis.sock";
    push @servers, $self;
    $self->start unless exists $options{start} && !$options{start};
    return $self;
}

sub pid { $_[0]{pid} }
sub port { $_[0]{port} }
sub socket { $_[0]{socket} }
sub dir { $_[0]{dir} }
sub logfile { "$_[0]{dir}/redis.log" }

# what outbox.redis_url takes
sub url { my ($self, $db) = @_; return "unix://$self->{socket}?db=" . ($db // 0) }
sub tcp_url { my ($self, $db) = @_; return "redis://127.0.0.1:$self->{port}/" . ($db // 0) }

# wait => 0: return while it may still be loading
sub start {
    my ($self, %options) = @_;
    die "$self->{name} runs already" if $self->{pid};
    my $conf = "$self->{dir}/redis.conf";
    open my $file, '>', $conf or die "$conf: $!";
    print $file "$_\n" for
        "dir $self->{dir}", "port $self->{port}", 'bind 127.0.0.1', "unixsocket $self->{socket}",
        "logfile $self->{dir}/redis.log", 'daemonize no', 'save ""', 'enable-debug-command yes',
        'appendonly ' . ($self->{aof} eq 'no' ? 'no' : 'yes'),
        ($self->{aof} eq 'no' ? () : "appendfsync $self->{aof}"), @{ $self->{conf} };
    close $file or die "$conf: $!";

    my ($program) = grep { defined } $ENV{REDIS_SERVER_PROGRAM}, map { in_path($_) } qw(redis-server valkey-server);
    die 'there is no redis-server' unless $program;
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        chdir $self->{dir};
        exec $program, $conf, $self->{sentinel} ? '--sentinel' : () or POSIX::_exit(127);
    }
    $self->{pid} = $pid;
    $self->wait_ready unless exists $options{wait} && !$options{wait};
    return $self;
}

sub in_path {
    my ($name) = @_;
    for my $dir (split /:/, $ENV{PATH}) { return "$dir/$name" if -x "$dir/$name" }
    return;
}

# PING is no proof: it is answered with PONG while the data is still being loaded. A read of a key is refused then.
sub wait_ready {
    my ($self) = @_;
    my $until = time + $self->{timeout};
    while (1) {
        return if eval { $self->cmd($self->{sentinel} ? 'PING' : ('EXISTS', 'outbox')) ; 1 } || $@ =~ /^(NOAUTH|NOPERM)/;
        my $why = $@;
        die "$self->{name} ended at once: see " . $self->logfile if waitpid($self->{pid}, WNOHANG) == $self->{pid};
        die "$self->{name} is not ready: $why" if time > $until;
        sleep 0.01;
    }
}

# Graceful: data that is not in an append-only file is lost, as with kill9, unless save => 1.
sub stop {
    my ($self, %options) = @_;
    return unless $self->{pid};
    eval { $self->cmd('SAVE') } if $options{save};
    kill 'CONT', $self->{pid};
    return $self->end_with('TERM');
}

sub kill9 {
    my ($self) = @_;
    return unless $self->{pid};
    return $self->end_with('KILL');
}

sub end_with {
    my ($self, $signal) = @_;
    my $pid = $self->{pid};
    $self->disconnect;
    kill $signal, $pid;
    my $until = time + $self->{timeout};
    while (waitpid($pid, WNOHANG) == 0) {
        kill 'KILL', $pid if time > $until;
        sleep 0.005;
    }
    delete $self->{pid};
    unlink $self->{socket};
    return $self;
}

# Stops it if it still runs. keep_data => 0 (the default) starts empty, as a server without persistence does; 1 keeps what
# it had written to its folder.
sub restart {
    my ($self, %options) = @_;
    $self->stop(save => $options{keep_data} && $self->{aof} eq 'no');
    $self->wipe unless $options{keep_data};
    return $self->start;
}

sub wipe {
    my ($self) = @_;
    remove_tree("$self->{dir}/appendonlydir");
    unlink glob("$self->{dir}/*.rdb"), glob("$self->{dir}/*.aof");
    return $self;
}

# Returns when it stands still.
sub sigstop {
    my ($self) = @_;
    kill 'STOP', $self->{pid};
    my $until = time + $self->{timeout};
    sleep 0.001 until stands_still($self->{pid}) || time > $until;
    return $self;
}

sub stands_still {
    my ($pid) = @_;
    open my $file, '<', "/proc/$pid/stat" or return 1;
    return (readline($file) // '') !~ /\) [RSD] /;
}

sub sigcont { kill 'CONT', $_[0]{pid}; return $_[0] }

# One command; its reply (strings, integers, undef for nil, array references), or dies with Redis' words: "OOM command ...".
# Errors inside an array, as EXEC has them, are objects that print as their words: ref($_) eq 'OutboxTest::Redis::Error'.
sub cmd {
    my ($self, @words) = @_;
    my ($reply) = $self->cmds(\@words);
    die "$$reply\n" if ref $reply eq 'OutboxTest::Redis::Error';
    return $reply;
}

# Several commands in one pipeline; their replies, errors as objects.
sub cmds {
    my ($self, @commands) = @_;
    $self->connect unless $self->{connection};
    my @replies;
    my $done = eval {
        $self->send_all(join '', map { encode(@$_) } @commands);
        push @replies, $self->read_reply for @commands;
        1;
    };
    return @replies if $done;
    my $why = $@;
    $self->disconnect;    # what comes after a lost reply would be taken for another's
    die $why;
}

# The stream is something else for a while. Each in one step: between two an entry could be added, and then be overwritten.
sub spoil { my ($self, $key) = @_; return $self->all([ 'RENAME', $key, "$key:aside" ], [ 'SET', $key, 'no stream' ]) }
sub mend { my ($self, $key) = @_; return $self->cmd('RENAME', "$key:aside", $key) }

# Several commands in one transaction; dies when one of them fails.
sub all {
    my ($self, @commands) = @_;
    my @replies = $self->cmds([ 'MULTI' ], @commands, [ 'EXEC' ]);
    for my $reply (@replies, ref $replies[-1] eq 'ARRAY' ? @{ $replies[-1] } : ()) {
        die "$$reply\n" if ref $reply eq 'OutboxTest::Redis::Error';
    }
    return;
}

# As typed: cli('XADD s 5-1 a b').
sub cli { my ($self, $line) = @_; return $self->cmd(split ' ', $line) }

# The keys of all streams of events, sorted, without their companions (dead letters, ...).
sub streams {
    my ($self) = @_;
    my ($cursor, %found) = (0);
    do {
        my $page = $self->cmd('SCAN', $cursor, 'MATCH', 'outbox:{*}', 'COUNT', 1000, 'TYPE', 'stream');
        $cursor = $page->[0];
        $found{$_} = 1 for @{ $page->[1] };
    } while ($cursor ne '0');
    return sort keys %found;
}

# All entries of a stream in order: [ id, { field => value }, [ names of the fields in order ] ].
sub entries {
    my ($self, $key) = @_;
    my ($from, @entries) = ('-');
    while (1) {
        my $page = $self->cmd('XRANGE', $key, $from, '+', 'COUNT', 2000);
        for my $entry (@$page) {
            my ($id, $words) = @$entry;
            my @names = map { $words->[ 2 * $_ ] } 0 .. @$words / 2 - 1;
            push @entries, [ $id, {@$words}, \@names ];
        }
        return @entries if @$page < 2000;
        $from = "($page->[-1][0]";
    }
}

# How many entries there are in all streams.
sub published {
    my ($self) = @_;
    my $published = 0;
    $published += $_ for $self->cmds(map { [ 'XLEN', $_ ] } $self->streams);
    return $published;
}

sub connect {
    my ($self) = @_;
    $self->{connection} = IO::Socket::UNIX->new(Peer => $self->{socket}) or die "$self->{socket}: $!\n";
    $self->{connection}->blocking(0);
    $self->{buffer} = '';
    $self->{at} = 0;
    $self->cmd('AUTH', @{ $self->{auth} }) if $self->{auth};
    return;
}

sub disconnect {
    my ($self) = @_;
    delete $self->{connection};
    return;
}

sub encode {
    my (@words) = @_;
    my $text = '*' . @words . "\r\n";
    for my $word (@words) {
        my $bytes = "$word";
        utf8::encode($bytes) if utf8::is_utf8($bytes);
        $text .= '$' . length($bytes) . "\r\n$bytes\r\n";
    }
    return $text;
}

sub send_all {
    my ($self, $bytes) = @_;
    my $select = IO::Select->new($self->{connection});
    my $deadline = time + $self->{timeout};
    while (length $bytes) {
        my $sent = syswrite $self->{connection}, $bytes;
        if (defined $sent) {
            substr($bytes, 0, $sent, '');
            $deadline = time + $self->{timeout};
            next;
        }
        die "Redis: $!\n" unless $!{EAGAIN} || $!{EINTR};
        next if $select->can_write($self->{timeout}) || time < $deadline;
        die "Redis took nothing for $self->{timeout} s\n";
    }
    return;
}

# Makes sure that there are so many more bytes at the reading place.
sub fill {
    my ($self, $wanted) = @_;
    my $select = IO::Select->new($self->{connection});
    my $deadline = time + $self->{timeout};
    while (length($self->{buffer}) - $self->{at} < $wanted) {
        my $got = sysread $self->{connection}, $self->{buffer}, 1 << 18, length $self->{buffer};
        die "Redis closed the connection\n" if defined $got && $got == 0;
        if (defined $got) {
            $deadline = time + $self->{timeout};
            next;
        }
        die "Redis: $!\n" unless $!{EAGAIN} || $!{EINTR};
        # a signal ends select early, and looks like a time-out
        next if $select->can_read($self->{timeout}) || time < $deadline;
        die "Redis gave no reply for $self->{timeout} s\n";
    }
    return;
}

sub read_line {
    my ($self) = @_;
    my $end;
    while (($end = index $self->{buffer}, "\r\n", $self->{at}) < 0) {
        $self->fill(length($self->{buffer}) - $self->{at} + 1);
    }
    my $line = substr $self->{buffer}, $self->{at}, $end - $self->{at};
    $self->{at} = $end + 2;
    return $line;
}

sub read_reply {
    my ($self) = @_;
    # forget what was read only between replies, and in one go: it is a copy
    if ($self->{at} > 1 << 20 || $self->{at} == length $self->{buffer}) {
        substr($self->{buffer}, 0, $self->{at}, '');
        $self->{at} = 0;
    }
    my $line = $self->read_line;
    my ($kind, $rest) = (substr($line, 0, 1), substr $line, 1);
    return $rest if $kind eq '+' || $kind eq ':';
    return bless \$rest, 'OutboxTest::Redis::Error' if $kind eq '-';
    if ($kind eq '$') {
        return undef if $rest < 0;
        $self->fill($rest + 2);
        my $value = substr $self->{buffer}, $self->{at}, $rest;
        $self->{at} += $rest + 2;
        return $value;
    }
    die "no reply of Redis: $line\n" unless $kind eq '*';
    return undef if $rest < 0;
    return [ map { $self->read_reply } 1 .. $rest ];
}

# Whatever way the test ends, its servers end with it; they alone, by the pid that fork returned.
END {
    my $status = $?;
    if ($$ == $owner) {
        for my $server (@servers) {
            kill 'CONT', $server->{pid} if $server->{pid};
            $server->kill9;
        }
    }
    $? = $status;
}

package OutboxTest::Redis::Error;
use overload '""' => sub { ${ $_[0] } }, fallback => 1;

1;
