<?php
// Laravel's encrypter, by Laravel's own code (Debian: php-illuminate-encryption).
//   php laravel.php make | python broken.py > ../laravel.json
//   php laravel.php open < [{"layout", "key", "value"}, …] > ["plaintext in hex", …]
require '/usr/share/php/Illuminate/Encryption/autoload.php';

use Illuminate\Encryption\Encrypter;

function encrypter(array $layout, string $key): Encrypter
{
    $name = $layout['cipher'] ?? ($layout['like'] == 'laravel' ? 'laravel-aes-256-cbc' : 'aes-256-gcm');
    return new Encrypter(hex2bin($key), str_replace('laravel-', '', $name));
}

if ($argv[1] === 'open') {
    $found = [];
    foreach (json_decode(stream_get_contents(STDIN), true) as $one) {
        $found[] = bin2hex(encrypter($one['layout'], $one['key'])->decryptString($one['value']));
    }
    echo json_encode($found);
    exit;
}

$sets = [];
$plain = ['', 'a', 'Grüße, Zürich ✓', str_repeat('x', 300), serialize(['id' => 7, 'name' => 'Ada'])];
$layouts = [
    ['like' => 'laravel'],
    ['like' => 'laravel-gcm'],
    ['like' => 'laravel', 'cipher' => 'laravel-aes-128-cbc'],
    ['like' => 'laravel-gcm', 'cipher' => 'aes-128-gcm'],
];
foreach ($layouts as $layout) {
    $bytes = str_contains($layout['cipher'] ?? '', '128') ? 16 : 32;
    $key = bin2hex(random_bytes($bytes));
    $vectors = [];
    foreach ($plain as $text) {
        $value = encrypter($layout, $key)->encryptString($text);
        $vectors[] = ['expect' => 'ok', 'plain' => bin2hex($text), 'value' => $value];
    }
    $value = encrypter($layout, bin2hex(random_bytes($bytes)))->encryptString('a value');
    $vectors[] = ['expect' => 'unknown-key', 'why' => 'sealed under another key', 'value' => $value];
    $sets[] = ['layout' => $layout, 'key' => $key, 'vectors' => $vectors];
}
$maker = 'php ' . PHP_VERSION . ' with php-illuminate-encryption';
echo json_encode(['maker' => $maker, 'sets' => $sets], JSON_UNESCAPED_SLASHES), "\n";
