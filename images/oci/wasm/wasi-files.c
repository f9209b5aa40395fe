// SPDX-License-Identifier: Apache-2.0
// The areas of wasi.c that are about files. The first argument is the directory that they happen
// in, which is empty.

#include "wasi.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

// More than one answer of fd_readdir holds.
enum { MANY = 300 };

static void enter(char **arguments) { CHECK(arguments[0] && chdir(arguments[0]) == 0); }

static void make(const char *name, const char *content) {
    int file = open(name, O_CREAT | O_EXCL | O_WRONLY, 0600);
    CHECK(file >= 0);
    CHECK(write(file, content, strlen(content)) == (ssize_t)strlen(content));
    CHECK(close(file) == 0);
}

static bool holds(const char *name, const char *content) {
    char text[256];
    int file = open(name, O_RDONLY);
    CHECK(file >= 0);
    ssize_t size = read(file, text, sizeof text);
    CHECK(close(file) == 0);
    return size == (ssize_t)strlen(content) && memcmp(text, content, size) == 0;
}

static void one_file(void) {
    char text[64];
    struct stat status;
    int file = open("new", O_CREAT | O_EXCL | O_RDWR, 0600);
    CHECK(file >= 0);
    REFUSED(open("new", O_CREAT | O_EXCL | O_RDWR, 0600), EEXIST);
    CHECK(write(file, "first second", 12) == 12);
    CHECK(lseek(file, 6, SEEK_SET) == 6);
    CHECK(read(file, text, sizeof text) == 6 && memcmp(text, "second", 6) == 0);
    CHECK(read(file, text, sizeof text) == 0);
    CHECK(lseek(file, -6, SEEK_END) == 6);
    REFUSED(lseek(file, -1, SEEK_SET), EINVAL);
    // The position stays where it was.
    CHECK(pwrite(file, "FIRST", 5, 0) == 5);
    CHECK(pread(file, text, 5, 0) == 5 && memcmp(text, "FIRST", 5) == 0);
    CHECK(lseek(file, 0, SEEK_CUR) == 6);
    struct iovec parts[] = {{"ONE", 3}, {"", 0}, {"TWO", 3}};
    // Fewer bytes than there are may be written, in any case.
    ssize_t written = writev(file, parts, 3);
    printf("of a write in parts: %d bytes\n", (int)written);
    CHECK(written == 6 || (written == 3 && write(file, "TWO", 3) == 3));
    CHECK(fsync(file) == 0 && fdatasync(file) == 0);
    CHECK(fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == 12 && status.st_nlink == 1);
    CHECK(close(file) == 0);
    REFUSED(write(file, "x", 1), EBADF);
    CHECK(holds("new", "FIRST ONETWO"));
}

static void lengths(void) {
    struct stat status;
    int file = open("new", O_WRONLY | O_APPEND);
    CHECK(file >= 0 && lseek(file, 0, SEEK_SET) == 0 && write(file, " end", 4) == 4);
    REFUSED(read(file, &status, 1), EBADF);
    CHECK(close(file) == 0 && holds("new", "FIRST ONETWO end"));
    file = open("new", O_RDWR);
    CHECK(fcntl(file, F_GETFL) == O_RDWR && fcntl(file, F_SETFL, O_APPEND) == 0 && fcntl(file, F_GETFL) == (O_RDWR | O_APPEND));
    CHECK(write(file, "!", 1) == 1 && holds("new", "FIRST ONETWO end!") && fcntl(file, F_SETFL, 0) == 0);
    CHECK(ftruncate(file, 5) == 0 && holds("new", "FIRST"));
    CHECK(ftruncate(file, 7) == 0);
    CHECK(stat("new", &status) == 0 && status.st_size == 7);
    // Which gives its result, and no errno.
    errno = posix_fallocate(file, 0, 100);
    tell("reserving space", errno == 0);
    // Beyond what 32 bits count.
    CHECK(pwrite(file, "far", 3, 5ll << 30) == 3);
    CHECK(fstat(file, &status) == 0 && status.st_size == (5ll << 30) + 3);
    CHECK(lseek(file, -3, SEEK_END) == 5ll << 30 && read(file, &status, 3) == 3 && memcmp(&status, "far", 3) == 0);
    CHECK(close(file) == 0);
    file = open("new", O_WRONLY | O_TRUNC);
    CHECK(file >= 0 && fstat(file, &status) == 0 && status.st_size == 0);
    CHECK(close(file) == 0);
}

static void names(void) {
    struct stat status;
    char text[8];
    make("other", "other");
    CHECK(rename("other", "new") == 0 && holds("new", "other"));
    REFUSED(open("other", O_RDONLY), ENOENT);
    REFUSED(rename("other", "new"), ENOENT);
    CHECK(link("new", "second") == 0 && stat("second", &status) == 0 && status.st_nlink == 2);
    REFUSED(link("new", "second"), EEXIST);
    // A file lives as long as it is open.
    int file = open("new", O_RDONLY);
    CHECK(unlink("new") == 0 && unlink("second") == 0);
    CHECK(read(file, text, sizeof text) == 5 && memcmp(text, "other", 5) == 0);
    CHECK(fstat(file, &status) == 0 && status.st_nlink == 0);
    CHECK(close(file) == 0);
    REFUSED(unlink("new"), ENOENT);
    REFUSED(stat("new", &status), ENOENT);
    REFUSED(open("new/below", O_RDONLY), ENOENT);
}

static void times(void) {
    struct stat status;
    make("timed", "");
    const struct timespec both[] = {{.tv_sec = 1000000000, .tv_nsec = 123456789}, {.tv_sec = 1234567890, .tv_nsec = 987654321}};
    CHECK(utimensat(AT_FDCWD, "timed", both, 0) == 0 && stat("timed", &status) == 0);
    CHECK(status.st_atim.tv_sec == 1000000000 && status.st_atim.tv_nsec == 123456789);
    CHECK(status.st_mtim.tv_sec == 1234567890 && status.st_mtim.tv_nsec == 987654321);
    CHECK(unlink("timed") == 0);
}

void files(char **arguments) {
    enter(arguments);
    one_file();
    lengths();
    names();
    times();
    REFUSED(open(".", O_WRONLY), EISDIR);
    FILE *lines = fopen("größe", "w");
    CHECK(lines && fprintf(lines, "line %d\n", 1) == 7 && fclose(lines) == 0);
    lines = fopen("größe", "a+");
    CHECK(lines && fputs("line 2\n", lines) >= 0 && fseek(lines, 7, SEEK_SET) == 0);
    char text[16];
    CHECK(fgets(text, sizeof text, lines) && strcmp(text, "line 2\n") == 0 && !fgets(text, sizeof text, lines) && feof(lines));
    CHECK(fclose(lines) == 0);
    // To another volume.
    tell("renaming to another volume", rename("größe", arguments[1]) == 0);
}

// There is each of MANY files once, and one directory, and nothing else.
static void counted(DIR *directory) {
    int seen[MANY] = {0}, number, directories = 0;
    for (const struct dirent *entry; (errno = 0, entry = readdir(directory));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (strcmp(entry->d_name, "below") == 0) {
            CHECK(entry->d_type == DT_DIR);
            directories++;
            continue;
        }
        CHECK(sscanf(entry->d_name, "a-file-with-a-name-of-some-length-%d", &number) == 1 && number >= 0 && number < MANY);
        CHECK(entry->d_type == DT_REG);
        seen[number]++;
    }
    CHECK(errno == 0 && directories == 1);
    for (number = 0; number < MANY; number++) CHECK(seen[number] == 1);
}

void directories(char **arguments) {
    char name[64];
    struct stat status;
    enter(arguments);
    CHECK(mkdir("one", 0700) == 0 && mkdir("one/below", 0700) == 0 && mkdir("one/below/three", 0700) == 0);
    REFUSED(mkdir("one", 0700), EEXIST);
    REFUSED(mkdir("absent/below", 0700), ENOENT);
    CHECK(stat("one", &status) == 0 && S_ISDIR(status.st_mode));
    REFUSED(rmdir("one"), ENOTEMPTY);
    REFUSED(rmdir("absent"), ENOENT);

    for (int number = 0; number < MANY; number++) {
        snprintf(name, sizeof name, "one/a-file-with-a-name-of-some-length-%d", number);
        make(name, "");
    }
    DIR *directory = opendir("one");
    CHECK(directory);
    counted(directory);
    rewinddir(directory);
    counted(directory);
    REFUSED(openat(dirfd(directory), "absent", O_RDONLY), ENOENT);
    int file = openat(dirfd(directory), "a-file-with-a-name-of-some-length-7", O_RDONLY);
    CHECK(file >= 0 && close(file) == 0);
    // What is open is a border, also where the module may go to the other side by another way.
    tell("out of an open directory", openat(dirfd(directory), "../one", O_RDONLY) >= 0);
    tell("out of it from below", openat(dirfd(directory), "below/../../one", O_RDONLY) >= 0);
    CHECK(symlink("../one", "one/up") == 0);
    tell("out of it by a link", openat(dirfd(directory), "up", O_RDONLY) >= 0);
    CHECK(unlink("one/up") == 0);
    CHECK(closedir(directory) == 0);

    const char *some = "one/a-file-with-a-name-of-some-length-0";
    REFUSED(rmdir(some), ENOTDIR);
    REFUSED(open("one/a-file-with-a-name-of-some-length-0/below", O_RDONLY), ENOTDIR);
    REFUSED(open(some, O_RDONLY | O_DIRECTORY), ENOTDIR);
    CHECK(opendir(some) == NULL && errno == ENOTDIR);
    tell("unlinking a directory", unlink("one/below/three") == 0);
    REFUSED(rename("one", "one/below/one"), EINVAL);
    CHECK(mkdir("two", 0700) == 0);
    REFUSED(rename("two", "one"), ENOTEMPTY);
    CHECK(rename("one", "two") == 0);
    REFUSED(stat("one", &status), ENOENT);

    for (int number = 0; number < MANY; number++) {
        snprintf(name, sizeof name, "two/a-file-with-a-name-of-some-length-%d", number);
        CHECK(unlink(name) == 0);
    }
    CHECK(rmdir("two/below/three") == 0 && rmdir("two/below") == 0 && rmdir("two") == 0);
}

void links(char **arguments) {
    char text[64];
    struct stat status;
    enter(arguments);
    make("file", "content");
    CHECK(mkdir("below", 0700) == 0);
    CHECK(symlink("file", "link") == 0 && symlink("link", "chain") == 0 && symlink("../file", "below/up") == 0);
    CHECK(readlink("chain", text, sizeof text) == 4 && memcmp(text, "link", 4) == 0);
    REFUSED(readlink("file", text, sizeof text), EINVAL);
    CHECK(holds("chain", "content") && holds("below/up", "content") && holds("below/../file", "content"));
    CHECK(lstat("chain", &status) == 0 && S_ISLNK(status.st_mode));
    CHECK(stat("chain", &status) == 0 && S_ISREG(status.st_mode) && status.st_size == 7);
    REFUSED(open("chain", O_RDONLY | O_NOFOLLOW), ELOOP);
    REFUSED(symlink("file", "link"), EEXIST);

    // As in the kubelet's volumes of ConfigMaps: the file is a link into a directory that is a
    // link.
    CHECK(symlink("below", "current") == 0 && symlink("current/up", "key") == 0 && holds("key", "content"));

    // What is above a link's target is not what is above the link.
    CHECK(mkdir("below/deep", 0700) == 0 && symlink("below/deep", "far") == 0 && holds("far/../up", "content"));
    REFUSED(open("far/../file", O_RDONLY), ENOENT);
    CHECK(holds(".//below///./up", "content") && stat("current/", &status) == 0 && S_ISDIR(status.st_mode));
    tell("a file as a directory", open("file/", O_RDONLY) >= 0);

    CHECK(symlink("absent", "dangling") == 0 && symlink("loop", "loop") == 0);
    REFUSED(open("dangling", O_RDONLY), ENOENT);
    REFUSED(open("loop", O_RDONLY), ELOOP);
    tell("a new file in place of a link", open("dangling", O_CREAT | O_EXCL | O_WRONLY, 0600) >= 0);
    tell("which has made one", stat("absent", &status) == 0);
    CHECK(unlink("chain") == 0 && unlink("loop") == 0 && holds("file", "content"));
    make("target", "");
    CHECK(symlink("target", "pointer") == 0 && rename("pointer", "moved") == 0 && lstat("moved", &status) == 0);
    printf("renamed: %s\n", S_ISLNK(status.st_mode) ? "the link" : "its target");
    make("linked", "");
    CHECK(symlink("linked", "of-link") == 0 && link("of-link", "hard") == 0 && lstat("hard", &status) == 0);
    printf("linked: %s\n", S_ISLNK(status.st_mode) ? "the link" : "its target");

    tell("making an absolute link", symlink("/etc/passwd", "absolute") == 0);
    tell("making a link that leads out", symlink("../../../../../../etc/passwd", "out") == 0);
}

// What is in a directory, and of what kind it is.
void list(char **arguments) {
    DIR *directory = opendir(arguments[0]);
    if (!directory) {
        tell("opendir", false);
        return;
    }
    for (const struct dirent *entry; (errno = 0, entry = readdir(directory));) {
        const unsigned char kind = entry->d_type;
        printf("%s: %s\n", entry->d_name,
               kind == DT_REG    ? "file"
               : kind == DT_DIR  ? "directory"
               : kind == DT_LNK  ? "link"
               : kind == DT_CHR  ? "character device"
                                 : "something else");
    }
    tell("end", errno == 0);
}

// The first line of each file that is named, or why there is none.
void show(char **arguments) {
    for (; *arguments; arguments++) {
        char text[64] = {0};
        int file = open(*arguments, O_RDONLY);
        if (file >= 0 && read(file, text, sizeof text - 1) >= 0)
            printf("%s: it says %.*s\n", *arguments, (int)strcspn(text, "\n"), text);
        else
            tell(*arguments, false);
    }
}

// Everything that changes something, in a directory that has the file `file` and the directory
// `directory`.
void change(char **arguments) {
    enter(arguments);
    tell("write", open("file", O_WRONLY) >= 0);
    tell("truncate", open("file", O_WRONLY | O_TRUNC) >= 0);
    tell("create", open("new", O_WRONLY | O_CREAT, 0600) >= 0);
    tell("set times", utimensat(AT_FDCWD, "file", NULL, 0) == 0);
    tell("mkdir", mkdir("below", 0700) == 0);
    tell("rmdir", rmdir("directory") == 0);
    tell("symlink", symlink("file", "link") == 0);
    tell("link", link("file", "second") == 0);
    tell("rename", rename("file", "other") == 0);
    tell("unlink", unlink("file") == 0);
}
