// libFuzzer around one target. Built by scripts/fuzz only (VHOST_SWIFTD_FUZZ is set then), with its instrumentation.
//
//   fuzz-run TARGET [libFuzzer's arguments]     fuzz-run --list

import FuzzTargets
import Glibc

@_silgen_name("LLVMFuzzerRunDriver")
func runDriver(
  _ argc: UnsafeMutablePointer<Int32>,
  _ argv: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?>,
  _ callback: @convention(c) (UnsafePointer<UInt8>?, Int) -> Int32
) -> Int32

/// The target that was named on the command line; set once, before libFuzzer runs.
nonisolated(unsafe) var chosen = FuzzTarget.all[0]

/// A line on standard error.
func tell(_ line: String) {
  for byte in (line + "\n").utf8 { withUnsafeBytes(of: byte) { _ = write(STDERR_FILENO, $0.baseAddress, 1) } }
}

@main struct FuzzRun {
  static func main() {
    let arguments = CommandLine.arguments
    if arguments.dropFirst().first == "--list" {
      for target in FuzzTarget.all { puts("\(target.name)\t\(target.about)") }
      return
    }
    guard let name = arguments.dropFirst().first, let target = FuzzTarget.named(name) else {
      tell("expected a target: \(FuzzTarget.all.map(\.name).joined(separator: " "))")
      exit(2)
    }
    chosen = target
    // libFuzzer sees the command line without the target's name.
    let rest = [arguments[0], "-max_len=\(target.longest)"] + arguments.dropFirst(2)
    var cells = rest.map { strdup($0) } + [nil]
    var count = Int32(rest.count)
    let status = cells.withUnsafeMutableBufferPointer { cells in
      var argv = cells.baseAddress
      return withUnsafeMutablePointer(to: &argv) { argv in
        runDriver(&count, argv) { bytes, count in
          do {
            try chosen.play(Array(UnsafeBufferPointer(start: bytes, count: count)))
          } catch {
            tell("DEFECT: \(error)")
            abort()
          }
          return 0
        }
      }
    }
    exit(status)
  }
}
