// What is going on, on standard error: a line where that is a terminal, nothing but milestones where it is a file. The main thread.

import Foundation

enum Progress {
  static func note(_ text: String) {
    FileHandle.standardError.write(Data("bench: \(text)\n".utf8))
  }
}
