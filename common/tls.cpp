#include "common/tls.hpp"

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>

#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

namespace outbox {

// the socket

static int socket_of(BIO *bio) { return static_cast<int>(reinterpret_cast<std::intptr_t>(BIO_get_data(bio))); }

static bool would_wait() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

// OpenSSL's own socket writes with write(), whose SIGPIPE would end a program that did not ask for it.
static int write_socket(BIO *bio, const char *data, int size) {
    BIO_clear_retry_flags(bio);
    ssize_t count = ::send(socket_of(bio), data, static_cast<std::size_t>(size), MSG_NOSIGNAL);
    if (count < 0 && would_wait())
        BIO_set_retry_write(bio);
    // The other side has closed. Why, it may have said in an alert before that: reading finds it, and the end.
    if (count < 0 && (errno == EPIPE || errno == ECONNRESET))
        return size;
    return static_cast<int>(count);
}

static int read_socket(BIO *bio, char *buffer, int size) {
    BIO_clear_retry_flags(bio);
    ssize_t count = ::recv(socket_of(bio), buffer, static_cast<std::size_t>(size), 0);
    if (count < 0 && would_wait())
        BIO_set_retry_read(bio);
    return static_cast<int>(count);
}

static long control_socket(BIO *, int command, long, void *) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

static BIO *create_bio(int fd) noexcept {
    static const BIO_METHOD *method = [] {
        BIO_METHOD *made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "outbox socket");
        if (made) {
            BIO_meth_set_write(made, write_socket);
            BIO_meth_set_read(made, read_socket);
            BIO_meth_set_ctrl(made, control_socket);
        }
        return made;
    }();
    BIO *bio = method ? BIO_new(method) : nullptr;
    if (bio) {
        BIO_set_data(bio, reinterpret_cast<void *>(static_cast<std::intptr_t>(fd)));
        BIO_set_init(bio, 1);
    }
    return bio;
}

// the files

template <auto release> struct with {
    template <typename T> void operator()(T *thing) const noexcept { release(thing); }
};
using context_pointer = std::unique_ptr<SSL_CTX, with<SSL_CTX_free>>;
using key_pointer = std::unique_ptr<EVP_PKEY, with<EVP_PKEY_free>>;
using file_pointer = std::unique_ptr<std::FILE, with<std::fclose>>;

// What went wrong first; the rest are consequences.
static std::string first_reason() {
    unsigned long code = ERR_peek_error();
    if (ERR_SYSTEM_ERROR(code))
        return std::strerror(ERR_GET_REASON(code));
    const char *reason = ERR_reason_error_string(code);
    return reason ? reason : "unknown error";
}

// A key that asks for a passphrase would ask at the server's terminal.
static int no_passphrase(char *, int, int, void *) { return -1; }

// Empty, or why it is not used. The rules are libpq's: our own file for us alone, root's perhaps for our group.
static std::string use_key(SSL_CTX *context, const std::string &path) {
    std::string file_name = "private key file \"" + path + "\"";
    file_pointer file(std::fopen(path.c_str(), "re"));
    if (!file)
        return "could not open " + file_name + ": " + std::strerror(errno);
    struct stat status;
    if (fstat(fileno(file.get()), &status) != 0 || !S_ISREG(status.st_mode))
        return file_name + " is not a plain file";
    if (status.st_uid != geteuid() && status.st_uid != 0)
        return file_name + " belongs to another user";
    bool is_roots = status.st_uid == 0 && geteuid() != 0;
    if (status.st_mode & (is_roots ? S_IWGRP | S_IXGRP | S_IRWXO : S_IRWXG | S_IRWXO))
        return file_name + " has group or world access; use mode 0600";
    key_pointer key(PEM_read_PrivateKey(file.get(), nullptr, no_passphrase, nullptr));
    if (!key)
        return "could not load " + file_name + ": " + first_reason();
    if (SSL_CTX_use_PrivateKey(context, key.get()) != 1)
        return file_name + " does not fit the certificate: " + first_reason();
    return "";
}

static std::string use_files(SSL_CTX *context, const tls_files &files) {
    if (files.ca.empty()) {
        if (SSL_CTX_set_default_verify_paths(context) != 1)
            return "could not load the certificate authorities of the system: " + first_reason();
    } else if (SSL_CTX_load_verify_locations(context, files.ca.c_str(), nullptr) != 1) {
        return "could not load root certificate file \"" + files.ca + "\": " + first_reason();
    }
    if (files.certificate.empty())
        return "";
    if (SSL_CTX_use_certificate_chain_file(context, files.certificate.c_str()) != 1)
        return "could not load certificate file \"" + files.certificate + "\": " + first_reason();
    return use_key(context, files.key);
}

// the session

bool tls_session::fail(std::string_view why) noexcept {
    error_ = "TLS: ";
    error_ += why;
    return false;
}

int tls_session::on_certificate_request(ssl_st *, void *self) noexcept {
    static_cast<tls_session *>(self)->asked_ = true;
    return 1;
}

bool tls_session::begin(int fd, const std::string &host, const tls_files &files) noexcept {
    end();
    host_ = host;
    error_.clear();
    read_waits_ = write_waits_ = waiting::no;
    asked_ = heard_ = false;
    has_certificate_ = !files.certificate.empty();
    ERR_clear_error();
    bool good = prepare(fd, host, files);
    ERR_clear_error();
    return good;
}

bool tls_session::prepare(int fd, const std::string &host, const tls_files &files) {
    context_pointer context(SSL_CTX_new(TLS_client_method()));
    if (!context || SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION) != 1)
        return fail("could not begin: " + first_reason());
    SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
    SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    std::string why = use_files(context.get(), files);
    if (!why.empty())
        return fail(why);

    ssl_ = SSL_new(context.get());
    if (!ssl_)
        return fail("could not begin: " + first_reason());
    SSL_set_cert_cb(ssl_, on_certificate_request, this);
    unsigned char address[sizeof(in6_addr)];
    bool is_address = inet_pton(AF_INET, host.c_str(), address) == 1 || inet_pton(AF_INET6, host.c_str(), address) == 1;
    X509_VERIFY_PARAM *rules = SSL_get0_param(ssl_);
    X509_VERIFY_PARAM_set_hostflags(rules, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    bool bound = is_address ? X509_VERIFY_PARAM_set1_ip_asc(rules, host.c_str()) == 1
                            : X509_VERIFY_PARAM_set1_host(rules, host.c_str(), 0) == 1 &&
                                  SSL_set_tlsext_host_name(ssl_, host.c_str()) == 1;
    // no check for a host: no session
    BIO *bio = bound && !host.empty() ? create_bio(fd) : nullptr;
    if (!bio)
        return fail("could not begin: " + first_reason());
    SSL_set_bio(ssl_, bio, bio);
    SSL_set_connect_state(ssl_);
    return true;
}

void tls_session::end() noexcept {
    if (ssl_)
        SSL_free(ssl_);
    ssl_ = nullptr;
}

// False where it failed, or is to be done again.
bool tls_session::judge(int result, waiting &waits) noexcept {
    waits = waiting::no;
    if (result > 0)
        return true;
    int system_error = errno;
    int kind = SSL_get_error(ssl_, result);
    if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE) {
        waits = kind == SSL_ERROR_WANT_READ ? waiting::to_read : waiting::to_write;
        errno = EAGAIN;
        return false;
    }
    // A server that got no certificate says so in an alert or just closes; after the handshake, with TLS 1.3.
    bool without = asked_ && !has_certificate_ && !heard_;
    bool ended = kind == SSL_ERROR_ZERO_RETURN || (kind == SSL_ERROR_SYSCALL && system_error == 0) ||
                 ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING;
    if (ended && SSL_is_init_finished(ssl_) && !without)
        error_ = "server closed the connection";
    else if (kind == SSL_ERROR_SYSCALL && system_error != 0 && !without)
        error_ = std::strerror(system_error);
    else
        fail(ended && !without ? "server closed the connection during the handshake" : explain(without));
    ERR_clear_error();
    errno = EPROTO;
    return false;
}

tls_session::step tls_session::shake_hands() noexcept {
    ERR_clear_error();
    errno = 0;
    if (judge(SSL_do_handshake(ssl_), read_waits_)) {
        // It would not be done otherwise; said here as well, because all depends on it.
        if (SSL_get_verify_result(ssl_) == X509_V_OK && SSL_get0_peer_certificate(ssl_))
            return step::done;
        fail("the server has no verified certificate");
        return step::failed;
    }
    return errno == EAGAIN ? step::again : step::failed;
}

ssize_t tls_session::read(char *buffer, std::size_t size) noexcept {
    std::size_t count = 0;
    ERR_clear_error();
    errno = 0;
    if (judge(SSL_read_ex(ssl_, buffer, size, &count), read_waits_)) {
        heard_ = true;
        return static_cast<ssize_t>(count);
    }
    return -1;
}

ssize_t tls_session::write(const char *data, std::size_t size) noexcept {
    std::size_t count = 0;
    ERR_clear_error();
    errno = 0;
    return judge(SSL_write_ex(ssl_, data, size, &count), write_waits_) ? static_cast<ssize_t>(count) : -1;
}

// the reasons

static std::string explain_certificate(long verdict, const std::string &host) {
    switch (verdict) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        return "the server's certificate has expired";
    case X509_V_ERR_CERT_NOT_YET_VALID:
        return "the server's certificate is not valid yet";
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
        return "the server's certificate is not for host \"" + host + "\"";
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
        return "the server's certificate is self-signed";
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
        return "the server's certificate is signed by an unknown certificate authority";
    default:
        return std::string("the server's certificate was not accepted: ") + X509_verify_cert_error_string(verdict);
    }
}

std::string tls_session::explain(bool without_certificate) const {
    constexpr const char *wants_certificate = "the server asked for a client certificate, and none is configured";
    unsigned long code = ERR_peek_error();
    int reason = ERR_GET_LIB(code) == ERR_LIB_SSL ? ERR_GET_REASON(code) : 0;
    switch (reason) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
        return explain_certificate(SSL_get_verify_result(ssl_), host_);
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_BAD_PROTOCOL_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
        return "the server does not speak TLS at this port";
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
    case SSL_R_NO_PROTOCOLS_AVAILABLE:
        return "there is no protocol that the server supports, too: it must be TLS 1.2 or later";
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
        return wants_certificate;
    case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
    case SSL_R_NO_SHARED_CIPHER:
        return without_certificate ? wants_certificate : "there is no cipher that the server supports, too";
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_TLSV1_ALERT_DECRYPT_ERROR:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
        return "the server refused the client certificate: " + first_reason();
    default:
        break;
    }
    return without_certificate ? wants_certificate : first_reason();
}

const char *tls_hint(std::string_view error) noexcept {
    auto has = [error](std::string_view part) { return error.find(part) != std::string_view::npos; };
    if (has("has expired") || has("not valid yet"))
        return "Renew the server's certificate, or set the clock right.";
    if (has("is not for host"))
        return "Use a name or address that the certificate has among its subject alternative names.";
    if (has("self-signed") || has("unknown certificate authority"))
        return "Set sslrootcert in the URL to the file of the authority that signed the server's certificate.";
    if (has("does not speak TLS") || has("during the handshake") || has("timed out"))
        return "Check that the URL leads to the server's TLS port (tls-port).";
    if (has("TLS 1.2"))
        return "Let the server offer TLS 1.2 or 1.3 (tls-protocols).";
    if (has("client certificate"))
        return "Set sslcert and sslkey in the URL to a certificate that the server accepts, and its key.";
    if (has("key file"))
        return "The key must be unencrypted, fit the certificate, and be readable by its owner only.";
    if (has("file \""))
        return "The file must be a readable PEM file.";
    return "Check the server's TLS settings and certificate.";
}

} // namespace outbox
