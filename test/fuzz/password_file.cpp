// Lines of a password file: none is for a host that it does not begin with.
#include "common/password_file.hpp"

#include "test/fuzz/fuzz.hpp"

#include <string>

int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    std::string_view line = text_of(data, size);
    for (const char *address : {"redis://outbox@h:7000", "redis://[::1]", "unix:///run/redis.sock"}) {
        outbox::redis_url url;
        std::string error, password;
        EXPECT(outbox::parse_redis_url(address, url, error));
        if (!outbox::password_for(line, url, password))
            continue;
        const std::string &written = url.path.empty() ? url.host : url.path;
        // a colon may be written with a backslash, and any backslash twice
        std::string plain;
        for (std::size_t i = 0; i < line.size() && plain.size() < written.size(); ++i) {
            if (line[i] == '\\' && i + 1 < line.size() && (line[i + 1] == ':' || line[i + 1] == '\\'))
                ++i;
            plain += line[i];
        }
        EXPECT(plain == written);
        EXPECT(password.size() < line.size());
    }
    return 0;
}
