// SPDX-License-Identifier: Apache-2.0
// Checks that say what did not hold and end the program with 1, and the areas that wasi.c can be
// asked for.

#include <errno.h>
#include <stdbool.h>

#define CHECK(condition) ((condition) ? (void)0 : failed(__FILE__, __LINE__, #condition))

// CHECK that a call is refused, with this error.
#define REFUSED(call, error) CHECK((errno = 0, (call)) == -1 && errno == (error))

_Noreturn void failed(const char *file, int line, const char *what);

// Prints a name and what became of it: for what engines answer differently, and tests compare.
void tell(const char *name, bool done);

// Each gets the arguments behind its name; the last one is NULL.
void files(char **arguments);
void directories(char **arguments);
void links(char **arguments);
void list(char **arguments);
void show(char **arguments);
void change(char **arguments);
