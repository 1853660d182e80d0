# The service that consumes: processes of client/examples/statements.cpp, of one group, that write a line for each event. They
# are killed, one or all, and started again.
package Demo::Service;

use strict;
use warnings;
use POSIX ();

sub new {
    my ($class, $dir, $many) = @_;
    my $self = bless { dir => $dir, pids => [] }, $class;
    $self->start for 1 .. $many;
    return $self;
}

sub start {
    my ($self) = @_;
    my $dir = $self->{dir};
    my $pid = fork // die "fork: $!\n";
    if ($pid == 0) {
        $SIG{INT} = 'IGNORE';
        $SIG{TERM} = $SIG{HUP} = 'DEFAULT';
        $ENV{OUTBOX_REDIS_URL} = "unix://$dir/redis.sock";
        $ENV{OUTBOX_INBOX} = "host=$dir dbname=postgres";
        open STDERR, '>>', "$dir/service.log" or POSIX::_exit(1);
        exec $ENV{DEMO_SERVICE} or POSIX::_exit(1);
    }
    push @{ $self->{pids} }, $pid;
    return;
}

# The oldest process, with -9; its pid. It is our child, so its number is nobody else's before it is waited for.
sub kill_one {
    my ($self) = @_;
    my $pid = shift @{ $self->{pids} };
    kill 'KILL', $pid;
    waitpid $pid, 0;
    return $pid;
}

sub end {
    my ($self) = @_;
    $self->kill_one while @{ $self->{pids} };
    return;
}

1;
