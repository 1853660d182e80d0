# A session that is kept open.
package OutboxTest::Session;

use strict;
use warnings;
use IPC::Run ();

sub new {
    my ($class, $node) = @_;
    my $self = bless { in => '', out => '', err => '', said => 0, timer => IPC::Run::timeout(60) }, $class;
    $self->{run} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres') ], '<', \$self->{in},
        '>', \$self->{out}, '2>', \$self->{err}, $self->{timer});
    return $self;
}

# returns when it is done
sub say {
    my ($self, $sql) = @_;
    my $done = 'done-' . ++$self->{said};
    $self->{timer}->start(60);    # for what is said now, not for the session
    $self->{in} .= "$sql\n\\echo $done\n";
    IPC::Run::pump($self->{run}) until $self->{out} =~ /$done\n/ || $self->{err} =~ /ERROR/;
    die $self->{err} if $self->{err} =~ /ERROR/;
    return;
}

1;
