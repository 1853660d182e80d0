# outboxctl as people and scripts run it, and a consumer of the client library for it to look at.
#
#   serve($node, $redis)            the environment says where both are, from now on
#   my $run = ctl(@words)           { status, out, err }
#   my $doc = ctl_json(@words)      what --json printed, decoded; dies unless it is one line, or the status is not the first
#                                   argument where that is a number
#   my $terminal = OutboxTest::Ctl::Terminal->new($shell_command, %environment)
#                                   in a pseudo-terminal of 40 lines and 160 columns (script), to be read and typed to
#   my $consumer = OutboxTest::Ctl::Consumer->new($redis, group => 'billing', ...)
#                                   test/client/programs/worker.cpp, with its options; ->stop ends it as a service is ended
package OutboxTest::Ctl;

use strict;
use warnings;
use Exporter qw(import);
use IPC::Run ();
use JSON::PP ();
use Test::More;

our @EXPORT = qw(serve ctl ctl_json);

my $program = $ENV{OUTBOXCTL} || die 'OUTBOXCTL is not set';

sub serve {
    my ($node, $redis) = @_;
    @ENV{qw(PGHOST PGPORT PGDATABASE)} = ($node->host, $node->port, 'postgres');
    delete @ENV{qw(OUTBOX_REDIS_URL OUTBOX_REDIS_PASSWORD OUTBOX_REDIS_PASSWORD_FILE NO_COLOR)};
    return;
}

sub ctl {
    my (@words) = @_;
    my ($out, $err) = ('', '');
    my $time = IPC::Run::timeout(60);
    my $run = IPC::Run::start([ $program, @words ], '<', \undef, '>', \$out, '2>', \$err, $time);
    $run->finish;
    note("outboxctl @words: " . $run->result(0) . "\n$out$err");
    return { status => $run->result(0), out => $out, err => $err };
}

sub ctl_json {
    my (@words) = @_;
    my $status = $words[0] =~ /^\d$/ ? shift @words : 0;
    my $run = ctl(@words, '--json');
    die "outboxctl @words: status $run->{status}: $run->{err}" if $run->{status} != $status;
    die "no single line: $run->{out}" if $run->{out} !~ /\A[^\n]+\n\z/;
    return JSON::PP->new->utf8->decode($run->{out});
}

package OutboxTest::Ctl::Terminal;

use IPC::Run ();
use Test::More;

# The command is one of the shell, in which "outboxctl" is the program.
sub new {
    my ($class, $command, %environment) = @_;
    local @ENV{ 'TERM', keys %environment } = ('xterm', values %environment);
    my $self = bless { in => '', out => '' }, $class;
    my $script = "stty rows 40 columns 160; outboxctl() { $program \"\$\@\"; }; $command";
    $self->{run} = IPC::Run::start([ 'script', '-qefc', "bash -c '$script'", '/dev/null' ], '<', \$self->{in}, '>', \$self->{out},
        '2>&1', IPC::Run::timeout(60));
    return $self;
}

# Until this has been written since the last call; what was written until then.
sub expect {
    my ($self, $regex) = @_;
    my $shown = eval { $self->{run}->pump until $self->{out} =~ /$regex/ || !$self->{run}->pumpable; 1 };
    die "the terminal does not come to show $regex: $@" . substr $self->{out}, -2000 unless $shown;
    die "the terminal shows no $regex: $self->{out}" unless $self->{out} =~ s/\A(.*?$regex)//s;
    return $1;
}

sub type { my ($self, $keys) = @_; $self->{in} .= $keys; $self->{run}->pump; return }

# What was written since; the exit status is ->{status}.
sub finish {
    my ($self) = @_;
    $self->{run}->finish;
    $self->{status} = $self->{run}->result(0);
    note($self->{out});
    return $self->{out};
}

package OutboxTest::Ctl::Consumer;

use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);

my @running;
my $owner = $$;

sub new {
    my ($class, $redis, %options) = @_;
    my $dir = PostgreSQL::Test::Utils::tempdir();
    my %words = (redis => $redis->url, group => 'billing', name => 'worker-1', journal => "$dir/journal", %options);
    my $program = ($ENV{OUTBOX_TEST_PROGRAMS} || die 'OUTBOX_TEST_PROGRAMS is not set') . '/worker';
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        open STDERR, '>', "$dir/log";
        exec $program, map { "$_=$words{$_}" } sort keys %words or POSIX::_exit(127);
    }
    my $self = bless { pid => $pid, journal => $words{journal} }, $class;
    push @running, $self;
    return $self;
}

# Handlers that do "gate" end, those that do "fail" no longer fail.
sub open_gate {
    my ($self) = @_;
    open my $file, '>', "$self->{journal}.gate" or die $!;
    return;
}

sub stop {
    my ($self, $signal) = @_;
    my $pid = delete $self->{pid} or return;
    kill $signal // 'TERM', $pid;
    my $until = time + 30;
    while (waitpid($pid, WNOHANG) == 0) {
        kill 'KILL', $pid if time > $until;
        sleep 0.01;
    }
    return;
}

END {
    my $status = $?;
    if ($$ == $owner) { $_->stop('KILL') for @running }
    $? = $status;
}

1;
