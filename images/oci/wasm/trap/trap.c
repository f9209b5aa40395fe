// SPDX-License-Identifier: Apache-2.0
// Traps in a function that has a name, at a line that is known.

static int divide(int by) {
    return 1 / by;
}

int main(int count, char **arguments) {
    (void)arguments;
    return divide(count - 1);
}
