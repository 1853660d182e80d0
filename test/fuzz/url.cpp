// URLs: what is accepted can be printed and parsed again, and shown without its password.
#include "common/url.hpp"

#include "test/fuzz/fuzz.hpp"

static std::string escaped(const std::string &text, bool is_path) {
    static const char hex[] = "0123456789ABCDEF";
    std::string result;
    for (char c : text) {
        auto byte = static_cast<unsigned char>(c);
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (is_path && c == '/');
        if (plain)
            result += c;
        else
            result.append({'%', hex[byte >> 4], hex[byte & 15]});
    }
    return result;
}

static std::string printed(const outbox::redis_url &url) {
    auto bracketed = [](const std::string &host) { return host.find(':') == std::string::npos ? host : "[" + host + "]"; };
    std::string result = !url.path.empty() ? "unix://" : url.tls ? "rediss" : "redis";
    if (url.path.empty())
        result += url.sentinels.empty() ? "://" : "+sentinel://";
    result += escaped(url.user, false) + ":" + escaped(url.password, false) + "@";
    if (!url.path.empty())
        return result + escaped(url.path, true) + "?db=" + std::to_string(url.database);
    if (url.sentinels.empty())
        result += bracketed(url.host) + ":" + std::to_string(url.port);
    for (const auto &one : url.sentinels)
        result += (&one == &url.sentinels.front() ? "" : ",") + bracketed(one.host) + ":" + std::to_string(one.port);
    if (!url.sentinels.empty())
        result += "/" + escaped(url.master, false);
    result += "/" + std::to_string(url.database);
    char separator = '?';
    auto parameter = [&](const char *name, const std::string &value) {
        if (!value.empty())
            result += separator + std::string(name) + "=" + escaped(value, true), separator = '&';
    };
    parameter("sslrootcert", url.files.ca);
    parameter("sslcert", url.files.certificate);
    parameter("sslkey", url.files.key);
    parameter("sentinel_user", url.sentinel_user);
    parameter("sentinel_password", url.sentinel_password);
    return result;
}

int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    std::string_view text = text_of(data, size);
    // neither a setting nor a log line can hold one
    if (text.find('\0') != std::string_view::npos)
        return 0;
    std::string masked = outbox::mask_passwords(text);
    EXPECT(outbox::mask_passwords(masked) == masked);

    outbox::redis_url url;
    std::string error;
    if (!outbox::parse_redis_url(text, url, error)) {
        EXPECT(!error.empty());
        return 0;
    }
    EXPECT(!url.path.empty() + !url.host.empty() + !url.sentinels.empty() == 1);
    EXPECT(url.sentinels.empty() == url.master.empty());
    EXPECT(url.port >= 1 && url.port <= 65535 && url.database >= 0 && url.database <= 65535);
    // nothing is asked of TLS where there is none
    EXPECT(url.tls || (url.files.ca + url.files.certificate + url.files.key).empty());
    EXPECT(url.files.certificate.empty() == url.files.key.empty());
    for (const std::string *part : {&url.host, &url.path, &url.user, &url.password, &url.master, &url.files.ca, &url.files.certificate,
                                    &url.files.key, &url.sentinel_user, &url.sentinel_password})
        EXPECT(part->find('\0') == std::string::npos);

    outbox::redis_url again;
    EXPECT(outbox::parse_redis_url(printed(url), again, error));
    EXPECT(printed(again) == printed(url) && again.endpoint() == url.endpoint());
    EXPECT(again.user == url.user && again.password == url.password && again.tls == url.tls);

    if (text.find("password=") != std::string_view::npos) {
        std::string once = outbox::mask_passwords(printed(url));
        for (const std::string *secret : {&url.password, &url.sentinel_password})
            EXPECT(secret->empty() || once.find("=" + escaped(*secret, true)) == std::string::npos);
        return 0;
    }
    auto at = text.rfind('@'), colon = text.find(':', text.find("://") + 3);
    if (at == std::string_view::npos || colon > at) {
        EXPECT(masked == text);
    } else {
        EXPECT(masked == std::string(text.substr(0, colon + 1)) + "***" + std::string(text.substr(at)));
    }
    if (!url.path.empty())
        EXPECT(url.endpoint() == url.path);
    else if (url.sentinels.empty())
        EXPECT(url.endpoint().ends_with(":" + std::to_string(url.port)) && url.endpoint().size() <= url.host.size() + 8);
    return 0;
}
