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
    std::string result = url.path.empty() ? "redis://" : "unix://";
    result += escaped(url.user, false) + ":" + escaped(url.password, false) + "@";
    if (!url.path.empty())
        return result + escaped(url.path, true) + "?db=" + std::to_string(url.database);
    result += url.host.find_first_of(":]") == std::string::npos ? url.host : "[" + url.host + "]";
    return result + ":" + std::to_string(url.port) + "/" + std::to_string(url.database);
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
    EXPECT(url.path.empty() != url.host.empty());
    EXPECT(url.port >= 1 && url.port <= 65535 && url.database >= 0 && url.database <= 65535);
    for (const std::string *part : {&url.host, &url.path, &url.user, &url.password})
        EXPECT(part->find('\0') == std::string::npos);

    outbox::redis_url again;
    EXPECT(outbox::parse_redis_url(printed(url), again, error));
    EXPECT(again.host == url.host && again.path == url.path && again.user == url.user && again.password == url.password);
    EXPECT(again.port == url.port && again.database == url.database);

    auto at = text.rfind('@'), colon = text.find(':', text.find("://") + 3);
    if (at == std::string_view::npos || colon > at) {
        EXPECT(masked == text);
    } else {
        EXPECT(masked == std::string(text.substr(0, colon + 1)) + "***" + std::string(text.substr(at)));
    }
    if (!url.path.empty())
        EXPECT(url.endpoint() == url.path);
    else
        EXPECT(url.endpoint().ends_with(":" + std::to_string(url.port)) && url.endpoint().size() <= url.host.size() + 8);
    return 0;
}
