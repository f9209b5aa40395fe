// SPDX-License-Identifier: Apache-2.0
// What an application uses of wasi_ephemeral_nn, an area at a time: the first argument names it.
// Ends with 0 when all holds.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LENT(name) __attribute__((import_module("wasi_ephemeral_nn"), import_name(#name))) extern uint32_t nn_##name
LENT(load)(uint32_t builders, uint32_t count, uint32_t encoding, uint32_t target, uint32_t graph);
LENT(load_by_name)(uint32_t name, uint32_t length, uint32_t graph);
LENT(load_by_name_with_config)(uint32_t name, uint32_t length, uint32_t metadata, uint32_t metadata_length, uint32_t graph);
LENT(init_execution_context)(uint32_t graph, uint32_t context);
LENT(set_input)(uint32_t context, uint32_t index, uint32_t tensor);
LENT(compute)(uint32_t context);
LENT(compute_single)(uint32_t context);
LENT(fini_single)(uint32_t context);
LENT(get_output)(uint32_t context, uint32_t index, uint32_t buffer, uint32_t most, uint32_t written);
LENT(get_output_single)(uint32_t context, uint32_t index, uint32_t buffer, uint32_t most, uint32_t written);
LENT(unload)(uint32_t graph);
LENT(finalize_execution_context)(uint32_t context);

// WasmEdge's logging for core modules: a level, a context and a message.
__attribute__((import_module("wasi:logging/logging"), import_name("log"))) extern void log_line(uint32_t level, uint32_t context, uint32_t context_length, uint32_t message, uint32_t length);

#define CHECK(condition) ((condition) ? (void)0 : failed(__LINE__, #condition))
// CHECK that a call has this errno.
#define ENDS(call, errno) ends(__LINE__, #call, (call), (errno))

enum { INVALID_ARGUMENT = 1, INVALID_ENCODING = 2, MISSING_MEMORY = 3, UNSUPPORTED = 6, TOO_LARGE = 7, NOT_FOUND = 8 };
enum { END_OF_SEQUENCE = 100, CONTEXT_FULL = 101, PROMPT_TOO_LONG = 102, MODEL_NOT_FOUND = 103 };
enum { GGML = 6, CPU = 0, AUTO = 3, U8 = 3 };

static char output[1 << 20];

_Noreturn static void failed(int line, const char *what) {
    fprintf(stderr, "nn.c:%d: %s\n", line, what);
    exit(1);
}

static void ends(int line, const char *call, uint32_t is, uint32_t should) {
    if (is == should) return;
    fprintf(stderr, "nn.c:%d: %s has the errno %u, and not %u\n", line, call, is, should);
    exit(1);
}

static uint32_t at(const void *address) { return (uint32_t)(uintptr_t)address; }

static uint32_t loaded(const char *name) {
    uint32_t graph = -1;
    ENDS(nn_load_by_name(at(name), strlen(name), at(&graph)), 0);
    return graph;
}

static uint32_t begun(uint32_t graph) {
    uint32_t context = -1;
    ENDS(nn_init_execution_context(graph, at(&context)), 0);
    return context;
}

static uint32_t give(uint32_t context, uint32_t index, const char *text) {
    uint32_t dimensions[] = {1};
    uint32_t tensor[] = {at(dimensions), 1, U8, at(text), strlen(text)};
    return nn_set_input(context, index, at(tensor));
}

// As llama-core asks: it does not know the length of its buffer.
static const char *got(uint32_t context, uint32_t index) {
    uint32_t written = 0;
    ENDS(nn_get_output(context, index, at(output), 0, at(&written)), 0);
    CHECK(written < sizeof output);
    output[written] = 0;
    return output;
}

// ask MODEL PROMPT [METADATA]: the answer in pieces.
static void ask(char **arguments) {
    uint32_t context = begun(loaded(arguments[0])), written = 0, count = 0, ended;
    if (arguments[2]) ENDS(give(context, 1, arguments[2]), 0);
    ENDS(give(context, 0, arguments[1]), 0);
    while ((ended = nn_compute_single(context)) == 0) {
        ENDS(nn_get_output_single(context, 0, at(output), sizeof output, at(&written)), 0);
        printf("%.*s", (int)written, output);
        fflush(stdout);
        count++;
    }
    printf("\n%u after %s pieces\n", ended, count > 1 ? "several" : count ? "one" : "no");
    printf("%s\n", got(context, 1));
    ENDS(nn_fini_single(context), 0);
    ENDS(nn_finalize_execution_context(context), 0);
}

// stay MODEL PROMPT [METADATA]: as ask, and then stays.
_Noreturn static void stay(char **arguments) {
    ask(arguments);
    fflush(stdout);
    for (;;) sleep(3600);
}

// turns MODEL PROMPT…: one after another in one context, which nobody tells that an answer is over.
static void turns(char **arguments) {
    uint32_t context = begun(loaded(arguments[0]));
    ENDS(give(context, 1, "{\"temp\":0,\"n-predict\":2147483647,\"ctx-size\":0}"), 0);
    for (int turn = 1; arguments[turn]; turn++) {
        ENDS(give(context, 0, arguments[turn]), 0);
        uint32_t ended;
        while ((ended = nn_compute_single(context)) == 0) {}
        printf("%u: %s\n", ended, got(context, 0));
    }
}

// log CONTEXT MESSAGE: a line of each level, and then a level that is none.
static void log_lines(char **arguments) {
    for (uint32_t level = 0; level <= 6; level++)
        log_line(level, at(arguments[0]), strlen(arguments[0]), at(arguments[1]), strlen(arguments[1]));
}

// whole MODEL PROMPT [METADATA]: the answer at once.
static void whole(char **arguments) {
    uint32_t context = begun(loaded(arguments[0]));
    if (arguments[2]) ENDS(give(context, 1, arguments[2]), 0);
    ENDS(give(context, 0, arguments[1]), 0);
    printf("%s\n", got(context, 1));
    uint32_t ended = nn_compute(context);
    printf("%u: %s\n", ended, got(context, 0));
    printf("%s\n", got(context, 1));
}

// embed MODEL TEXT
static void embed(char **arguments) {
    uint32_t graph = -1;
    const char *metadata = "{\"embedding\":true,\"ctx-size\":256}";
    ENDS(nn_load_by_name_with_config(at(arguments[0]), strlen(arguments[0]), at(metadata), strlen(metadata), at(&graph)), 0);
    uint32_t context = begun(graph);
    ENDS(give(context, 0, arguments[1]), 0);
    ENDS(nn_compute(context), 0);
    printf("%s\n", got(context, 0));
}

// several MODEL PROMPT…: all at once, a piece of each in turn.
static void several(char **arguments) {
    enum { MOST = 8 };
    uint32_t contexts[MOST], graph = loaded(arguments[0]), written = 0;
    static char answers[MOST][4096];
    int count = 0, running;
    for (; arguments[1 + count]; count++) {
        contexts[count] = begun(graph);
        ENDS(give(contexts[count], 1, "{\"temp\":0,\"parallel\":4}"), 0);
        ENDS(give(contexts[count], 0, arguments[1 + count]), 0);
    }
    do {
        running = 0;
        for (int n = 0; n < count; n++) {
            if (nn_compute_single(contexts[n]) != 0) continue;
            running++;
            ENDS(nn_get_output_single(contexts[n], 0, at(output), sizeof output - 1, at(&written)), 0);
            output[written] = 0;
            CHECK(strlen(answers[n]) + written < sizeof answers[n]);
            strcat(answers[n], output);
        }
    } while (running);
    for (int n = 0; n < count; n++) printf("%s\n", answers[n]);
}

// hold MODEL: loads it, and waits for a line.
static void hold(char **arguments) {
    uint32_t context = begun(loaded(arguments[0]));
    printf("loaded\n");
    fflush(stdout);
    ENDS(give(context, 0, "Hello."), 0);
    CHECK(getchar() != EOF);
    printf("computed: %u\n", nn_compute(context));
}

// load MODEL: the errno of loading it.
static void load(char **arguments) {
    uint32_t graph = -1;
    printf("%u\n", nn_load_by_name(at(arguments[0]), strlen(arguments[0]), at(&graph)));
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

// speed MODEL TOKENS ROUNDS: of each round the milliseconds to the first piece, and the tokens per
// second from there on. The prompts differ, so that none is known from before.
static void speed(char **arguments) {
    uint32_t graph = loaded(arguments[0]);
    int tokens = atoi(arguments[1]), rounds = atoi(arguments[2]);
    char text[256];
    for (int round = 0; round < rounds; round++) {
        uint32_t context = begun(graph), pieces = 0;
        snprintf(text, sizeof text, "{\"temp\":0,\"ignore-eos\":true,\"n-predict\":%d}", tokens);
        ENDS(give(context, 1, text), 0);
        snprintf(text, sizeof text, "%d: one two three four five six seven eight nine ten", round);
        double begin = now(), first = 0;
        ENDS(give(context, 0, text), 0);
        while (nn_compute_single(context) == 0)
            if (pieces++ == 0) first = now();
        double end = now();
        unsigned long long counted = 0;
        const char *field = strstr(got(context, 1), "\"output_tokens\":");
        CHECK(field && sscanf(field, "\"output_tokens\":%llu", &counted) == 1);
        printf("%.2f %.2f\n", (first - begin) * 1000, (counted - 1) / (end - first));
        fflush(stdout);
        ENDS(nn_finalize_execution_context(context), 0);
    }
}

// What is refused, and changes nothing.
static void refused(char **arguments) {
    const char *model = arguments[0], *path = arguments[1];
    uint32_t graph = loaded(model), context = begun(graph), written = 0;
    uint32_t outside = (uint32_t)__builtin_wasm_memory_size(0) << 16;
    char builder[256];
    snprintf(builder, sizeof builder, "preload:%s", path);
    uint32_t builders[] = {at(builder), strlen(builder)};
    ENDS(nn_load(at(builders), 1, GGML, CPU, at(&graph)), 0);
    ENDS(nn_load(at(builders), 1, 0, CPU, at(&graph)), INVALID_ENCODING);
    ENDS(nn_load(at(builders), 1, GGML, AUTO, at(&graph)), INVALID_ARGUMENT);
    ENDS(nn_load(at(builders), 0, GGML, CPU, at(&graph)), INVALID_ARGUMENT);
    ENDS(nn_load(outside - 4, 1, GGML, CPU, at(&graph)), MISSING_MEMORY);
    builder[0] = 'P';
    ENDS(nn_load(at(builders), 1, GGML, CPU, at(&graph)), UNSUPPORTED);
    snprintf(builder, sizeof builder, "preload:/nonesuch");
    builders[1] = strlen(builder);
    ENDS(nn_load(at(builders), 1, GGML, CPU, at(&graph)), MODEL_NOT_FOUND);
    ENDS(nn_load_by_name(at("nonesuch"), 8, at(&graph)), NOT_FOUND);
    ENDS(nn_load_by_name(at(model), outside, at(&graph)), TOO_LARGE);
    ENDS(nn_load_by_name(outside, 1, at(&graph)), MISSING_MEMORY);
    ENDS(nn_load_by_name(-1, -1, at(&graph)), TOO_LARGE);
    ENDS(nn_load_by_name(at(model), strlen(model), outside), MISSING_MEMORY);
    ENDS(nn_load_by_name(at(model), strlen(model), -2), MISSING_MEMORY);
    ENDS(nn_load_by_name_with_config(at(model), strlen(model), at("{"), 1, at(&graph)), INVALID_ARGUMENT);
    ENDS(nn_init_execution_context(12345, at(&context)), INVALID_ARGUMENT);
    ENDS(give(12345, 0, "Hello."), INVALID_ARGUMENT);
    ENDS(give(context, 2, "Hello."), INVALID_ARGUMENT);
    ENDS(give(context, 1, "{\"temp\":\"hot\"}"), INVALID_ARGUMENT);
    ENDS(give(context, 1, "{\"never-heard-of\":1}"), 0);
    ENDS(nn_set_input(context, 0, outside - 4), MISSING_MEMORY);
    uint32_t tensor[] = {0, 0, U8, outside - 8, 16};
    ENDS(nn_set_input(context, 0, at(tensor)), MISSING_MEMORY);
    ENDS(nn_compute(12345), INVALID_ARGUMENT);
    ENDS(nn_compute_single(12345), INVALID_ARGUMENT);
    // There is no prompt yet.
    ENDS(nn_compute(begun(graph)), INVALID_ARGUMENT);
    ENDS(give(context, 1, "{\"temp\":0,\"n-predict\":8}"), 0);
    ENDS(give(context, 0, "Hello."), 0);
    ENDS(nn_compute(context), 0);
    ENDS(nn_get_output(context, 7, at(output), 0, at(&written)), INVALID_ARGUMENT);
    ENDS(nn_get_output(context, 1, at(output), 1, at(&written)), TOO_LARGE);
    ENDS(nn_get_output(context, 1, outside - 1, 0, at(&written)), MISSING_MEMORY);
    ENDS(nn_get_output(context, 1, at(output), 0, outside), MISSING_MEMORY);
    ENDS(nn_unload(12345), INVALID_ARGUMENT);
    ENDS(nn_finalize_execution_context(context), 0);
    ENDS(nn_finalize_execution_context(context), INVALID_ARGUMENT);
    ENDS(nn_unload(graph), 0);
    ENDS(nn_init_execution_context(graph, at(&context)), INVALID_ARGUMENT);
    printf("refused\n");
}

int main(int count, char **arguments) {
    static const struct {
        const char *name;
        void (*area)(char **);
        int least;
    } areas[] = {{"ask", ask, 2}, {"stay", stay, 2}, {"turns", turns, 2}, {"log", log_lines, 2}, {"whole", whole, 2}, {"embed", embed, 2}, {"several", several, 2}, {"hold", hold, 1}, {"load", load, 1}, {"speed", speed, 3}, {"refused", refused, 2}};
    for (size_t n = 0; n < sizeof areas / sizeof *areas; n++)
        if (count >= 2 + areas[n].least && strcmp(arguments[1], areas[n].name) == 0) {
            areas[n].area(arguments + 2);
            return 0;
        }
    fprintf(stderr, "usage: nn AREA ARGUMENT…\n");
    return 2;
}
