// Options of the benchmark's programs: --name value, listed by --help. A wrong one ends the program with a message.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

class options {
  public:
    // about: what --help prints first; then name, default value and meaning of each, in threes
    options(int argc, char **argv, const char *about, std::initializer_list<const char *> known) {
        std::string help = std::string(about) + "\n\n";
        for (auto each = known.begin(); each != known.end(); each += 3) {
            values_[each[0]] = each[1];
            help.append("  --").append(each[0]).append("\t").append(each[2]);
            if (each[1][0])
                help.append(" (").append(each[1]).append(")");
            help.append("\n");
        }
        for (int i = 1; i < argc; ++i) {
            std::string name = argv[i];
            if (name == "--help") {
                std::fputs(help.c_str(), stdout);
                std::exit(0);
            }
            if (!name.starts_with("--") || !values_.contains(name.substr(2)))
                fail("there is no option \"" + name + "\"; see --help");
            if (++i == argc)
                fail("option \"" + name + "\" needs a value");
            values_[name.substr(2)] = argv[i];
        }
    }

    const std::string &text(const std::string &name) const { return values_.at(name); }

    long number(const std::string &name) const {
        const std::string &value = values_.at(name);
        char *end = nullptr;
        long result = std::strtol(value.c_str(), &end, 10);
        if (value.empty() || *end)
            fail("option \"--" + name + "\" must be a number, not \"" + value + "\"");
        return result;
    }

    [[noreturn]] static void fail(const std::string &message) {
        std::fprintf(stderr, "%s\n", message.c_str());
        std::exit(1);
    }

  private:
    std::map<std::string, std::string> values_;
};
