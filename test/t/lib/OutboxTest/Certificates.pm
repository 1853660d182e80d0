# Certificates of a test's own, made by the openssl command: an authority, and what it signs.
#
#   my $certificates = OutboxTest::Certificates->new;         in a folder that ends with the test
#   $certificates->make('server', names => 'DNS:localhost,IP:127.0.0.1,IP:::1');    server.crt and server.key
#   $certificates->make('old', names => ..., expired => 1);    a day ago, or more
#   $certificates->make('alone', names => ..., by => undef);  signed by itself
#   $certificates->make('foreign', names => ..., by => 'other');    by an authority of that name, made with authority('other')
#   $certificates->path('server.crt')
#   $certificates->redis_conf('server', $port, @more)   lines for OutboxTest::Redis: TLS at this port
package OutboxTest::Certificates;

use strict;
use warnings;
use POSIX ();

sub new {
    my ($class) = @_;
    require PostgreSQL::Test::Utils;
    my $self = bless { dir => PostgreSQL::Test::Utils::tempdir_short() }, $class;
    $self->authority('ca');
    return $self;
}

sub path { my ($self, $name) = @_; return "$self->{dir}/$name" }

sub openssl {
    my ($self, @words) = @_;
    my $log = $self->path('openssl.log');
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        open STDOUT, '>>', $log;
        open STDERR, '>>', $log;
        exec 'openssl', @words or POSIX::_exit(127);
    }
    waitpid $pid, 0;
    die "openssl @words: see $log" if $?;
    return;
}

sub authority {
    my ($self, $name) = @_;
    $self->openssl(qw(req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj), "/CN=$name",
        '-keyout', $self->path("$name.key"), '-out', $self->path("$name.crt"));
    return;
}

sub make {
    my ($self, $name, %options) = @_;
    my $by = exists $options{by} ? $options{by} : 'ca';
    my ($key, $request, $file, $extensions) = map { $self->path("$name.$_") } qw(key csr crt ext);
    open my $out, '>', $extensions or die "$extensions: $!";
    print $out "subjectAltName = $options{names}\n" if $options{names};
    close $out;
    $self->openssl(qw(req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj), "/CN=$name", '-keyout', $key, '-out', $request);
    my @sign = (qw(x509 -req -in), $request, '-extfile', $extensions, '-out', $file,
        defined $by ? ('-CA', $self->path("$by.crt"), '-CAkey', $self->path("$by.key"), '-CAcreateserial') : ('-signkey', $key));
    if ($options{expired}) {
        # some versions of the command know days in the past, the others dates
        eval { $self->openssl(@sign, qw(-days -1)); 1 }
            or $self->openssl(@sign, qw(-not_before 20200101000000Z -not_after 20200102000000Z));
    }
    else { $self->openssl(@sign, qw(-days 30)) }
    chmod 0600, $key;
    return;
}

sub redis_conf {
    my ($self, $name, $port, @more) = @_;
    return ("tls-port $port", 'tls-cert-file ' . $self->path("$name.crt"), 'tls-key-file ' . $self->path("$name.key"),
        'tls-ca-cert-file ' . $self->path('ca.crt'), 'tls-auth-clients no', @more);
}

1;
