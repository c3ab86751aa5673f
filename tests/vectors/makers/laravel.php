<?php
// Laravel's encrypter, by Laravel's own code (Debian: php-illuminate-encryption).
//   php laravel.php make > ../laravel.json
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

$vectors = [];
$plain = ['', 'a', 'Grüße, Zürich ✓', str_repeat('x', 300), serialize(['id' => 7, 'name' => 'Ada'])];
$layouts = [
    ['like' => 'laravel'],
    ['like' => 'laravel-gcm'],
    ['like' => 'laravel', 'cipher' => 'laravel-aes-128-cbc'],
    ['like' => 'laravel-gcm', 'cipher' => 'aes-128-gcm'],
];
foreach ($layouts as $layout) {
    $key = bin2hex(random_bytes(str_contains($layout['cipher'] ?? '', '128') ? 16 : 32));
    $encrypter = encrypter($layout, $key);
    $as = ['layout' => $layout, 'key' => $key];
    foreach ($plain as $text) {
        $vectors[] = $as + ['plain' => bin2hex($text), 'value' => $encrypter->encryptString($text)];
    }
    $value = $encrypter->encryptString('a value');
    $broken = json_decode(base64_decode($value), true);
    $broken['value'] = base64_encode(strrev(base64_decode($broken['value'])));
    $cut = json_decode(base64_decode($value), true);
    unset($cut['iv']);
    $other = ['key' => bin2hex(random_bytes(strlen($key) / 2))] + $as;
    $vectors[] = $as + ['value' => base64_encode(json_encode($broken)), 'fails' => 'unopenable'];
    $vectors[] = $as + ['value' => base64_encode(json_encode($cut)), 'fails' => 'malformed'];
    $vectors[] = $as + ['value' => substr($value, 0, -4), 'fails' => 'malformed'];
    $vectors[] = $other + ['value' => $value, 'fails' => 'unopenable'];
}
$maker = 'php ' . PHP_VERSION . ' with php-illuminate-encryption';
$made = ['maker' => $maker, 'vectors' => $vectors];
echo json_encode($made, JSON_PRETTY_PRINT | JSON_UNESCAPED_SLASHES), "\n";
